"""What is asked of a model: requests from profiles of pages, image sizes, distributions or a trace.

Vision and images are told by the tokens of an image: asked at some images of the mix, in proportion between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.serving.distributions import Distribution, Empirical, Fixed, LogNormal, Uniform
from modelmeter.serving.numbers import Array, above
from modelmeter.serving.requests import Mix, Requests
from modelmeter.serving.trace import read_trace
from modelmeter.workload import Workload

SAMPLE = 256
"""Requests that stand for a mix."""
IMAGES = 6
"""Images, of those that differ in tokens, that vision is asked at."""
SHAPES = "a number, {low: A, high: B}, {mean: A, p99: B} or other percentiles, or {values: [...], shares: [...]}"


def distribution(key: str, given: Any) -> Distribution:
    """A distribution from what YAML says of it. Raises InputError for what is none.

    >>> distribution("mix.output", {"low": 10, "high": 20})
    Uniform(low=10, high=20)
    """
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return Fixed(above(key, given))
    try:
        if isinstance(given, Mapping) and given.keys() == {"low", "high"}:
            return Uniform(**given)
        if isinstance(given, Mapping) and "values" in given and given.keys() <= {"values", "shares"}:
            return Empirical(**given)
        if isinstance(given, Mapping) and given:
            return LogNormal.of(**given)
    except (InputError, TypeError) as error:
        raise InputError(f"{key}: {error}") from None
    raise InputError(f"{key} must be {SHAPES}, not {given!r}")


@final
@dataclass(frozen=True)
class Page:
    """A page of a mix: the workload of one request, and its share of the requests."""

    work: Workload
    share: float = 1.0
    told: str = ""


@final
@dataclass(frozen=True, eq=False)
class Asked:
    """Requests of a model, `options` of their workloads (counting), and `images` that differ in tokens."""

    model: BaseModel
    requests: Requests
    images: tuple[Workload, ...]
    told: str

    @classmethod
    def of_pages(cls, model: BaseModel, pages: Sequence[Page], prompt: Any = None, output: Any = None,
                 told: str = "") -> Asked:  # fmt: skip
        """A mix of pages; `prompt` and `output` are distributions in the place of the pages' own lengths."""
        total = sum(above("a share of the mix", page.share) for page in pages)
        own = {key: distribution(f"mix.{key}", given)
               for key, given in (("prompt", prompt), ("output", output)) if given is not None}  # fmt: skip
        parts = []
        for seed, page in enumerate(pages):
            work = page.work
            lengths = {"prompt": Fixed(float(work.prompt_tokens)), "output": Fixed(float(work.decode_steps))} | own
            mix = Mix(image=Fixed(float(work.image.tokens)), **lengths)  # type: ignore[arg-type]
            parts.append(mix.requests(max(1, round(SAMPLE * page.share / total)), seed))
        columns = [f.name for f in fields(Requests) if f.name != "arrival_s"]
        requests = Requests(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
        return cls(model, requests, _different([page.work for page in pages]), told)

    @classmethod
    def of_trace(cls, model: BaseModel, path: str, work_of: Callable[[int, int], Workload], page: Workload) -> Asked:
        """The requests of a CSV file; an image whose size it does not tell is like the `page`, by tokens."""
        known = cache(work_of)
        requests = read_trace(path, lambda width, height: float(known(width, height).image.tokens))
        sizes = sorted({(int(w), int(h)) for w, h in zip(requests.width, requests.height, strict=True) if w})
        if model.planner is None and requests.image_tokens.any():
            raise InputError(f"trace {path!r} has images, and {model.name} takes none")
        images = [known(*size) for size in sizes] or [page]
        told = f"the {len(requests):,} requests of {path}, {requests.pages.sum():,.0f} pages"
        return cls(model, requests, _different(images), told)

    @property
    def unit(self) -> str:
        """What is counted: pages, or requests of a model that sees none."""
        return "pages" if self.model.planner is not None or np.any(self.requests.pages != 1) else "requests"

    @property
    def typical(self) -> Workload:
        """A request of mean lengths, with the image whose tokens are nearest to the mean."""
        mean = float(self.requests.image_tokens.mean())
        page = min(self.images, key=lambda work: abs(float(work.image.tokens) - mean))
        prompt, output = (float(getattr(self.requests, f"{name}_tokens").mean()) for name in ("prompt", "output"))
        return replace(page, prompt_tokens=round(prompt), decode_steps=max(1, round(output)), batch=1)

    @property
    def longest(self) -> float:
        """Tokens of the longest request at its end."""
        return float((self.requests.prefill_tokens + self.requests.steps).max())

    def by_image(self, seconds: Array) -> Callable[[Requests], Array]:
        """Seconds of requests, from those of `images`: in proportion to tokens between them and beyond."""
        tokens = np.array([0.0, *(float(work.image.tokens) for work in self.images)])
        known = np.array([0.0, *seconds])
        if not tokens[-1]:
            return lambda requests: np.zeros(len(requests))

        def of(requests: Requests) -> Array:
            most = np.maximum(requests.image_tokens / max(tokens[-1], 1.0), 1.0)
            return np.asarray(np.interp(requests.image_tokens, tokens, known) * most)

        return of


def _different(works: Sequence[Workload]) -> tuple[Workload, ...]:
    """Some of the workloads, no two with as many image tokens, from the fewest to the most; none of text."""
    found = {float(work.image.tokens): work for work in works if work.image.views}
    tokens = sorted(found)
    if not tokens:
        return tuple(works[:1])
    some = np.unique(np.linspace(0, len(tokens) - 1, IMAGES).round().astype(int))
    return tuple(found[tokens[i]] for i in some)
