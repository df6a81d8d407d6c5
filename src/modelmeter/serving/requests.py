"""Requests: what is asked of a service, as columns of numbers, and the mixes that they are drawn from.

A mix says how image tokens, prompt and answer are distributed; a trace (`trace.py`) is a list of requests that came.
How an image becomes tokens is the model's own rule: give tokens, or sizes and a function of width and height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np

from modelmeter.errors import InputError
from modelmeter.serving.distributions import Distribution, Empirical, Fixed
from modelmeter.serving.numbers import Array, at_least, whole

TokensOfSize = Callable[[int, int], float]
"""Tokens of an image of a width and a height in pixels."""


@final
@dataclass(frozen=True, eq=False)
class Requests:
    """N requests, all equally likely: each column is an array of N float64.

    `image_tokens` enter the decoder's sequence before `prompt_tokens`; of `output_tokens` the prefill yields the first
    and each decode step one more. `pages` is how many pages a request stands for. `width` and `height` are pixels, 0
    where unknown. `arrival_s` is when each came, of a trace; None for a mix. Raises InputError for columns that differ
    in length or hold what no request has.
    """

    image_tokens: Array
    prompt_tokens: Array
    output_tokens: Array
    pages: Array
    width: Array
    height: Array
    arrival_s: Array | None = None

    def __post_init__(self) -> None:
        for name, least in COLUMNS.items():
            column = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, column)
            if column.shape != (len(self.output_tokens),) or not np.all((column >= least) & (column < np.inf)):
                raise InputError(f"{name} must be {len(self.output_tokens)} numbers of at least {least}")
        if not len(self) or np.any(self.prefill_tokens < 1):
            raise InputError("each request needs at least one token of image or prompt, and there must be one request")

    def __len__(self) -> int:
        return len(self.output_tokens)

    @property
    def prefill_tokens(self) -> Array:
        """Tokens of the prefill: image and prompt."""
        return np.asarray(self.image_tokens + self.prompt_tokens)

    @property
    def steps(self) -> Array:
        """Decode steps: the tokens of the answer but the first."""
        return np.asarray(self.output_tokens - 1)

    @property
    def decode_context(self) -> float:
        """The mean number of tokens in the cache of a decode step, over all decode steps of all requests."""
        total = self.steps.sum()
        held = self.steps * (self.prefill_tokens + (self.steps + 1) / 2)
        return float(held.sum() / total) if total else float(self.prefill_tokens.mean())

    @property
    def rate(self) -> float:
        """Requests a second of a trace. Raises InputError for a mix, or for a trace that spans no time."""
        if self.arrival_s is None or np.ptp(self.arrival_s) <= 0:
            raise InputError("a rate is that of a trace of two or more requests that came at different times")
        return float((len(self) - 1) / np.ptp(self.arrival_s))

    @property
    def burstiness(self) -> float:
        """The squared coefficient of variation of the times between arrivals: 1 for a mix, which arrives as Poisson."""
        if self.arrival_s is None:
            return 1.0
        gaps = np.diff(self.arrival_s)
        return float(gaps.var() / gaps.mean() ** 2) if len(gaps) and gaps.mean() > 0 else 1.0

    def take(self, rows: Any) -> Requests:
        """Some of the requests, by index, in that order, without arrivals."""
        return replace(self, arrival_s=None, **{name: getattr(self, name)[rows] for name in COLUMNS})


COLUMNS = {"image_tokens": 0, "prompt_tokens": 0, "output_tokens": 1, "pages": 0, "width": 0, "height": 0}
"""The least that each column may hold."""


@final
@dataclass(frozen=True)
class Image:
    """An image size of a mix: pixels, and its share of the requests."""

    width: int
    height: int
    share: float = 1.0

    def __post_init__(self) -> None:
        whole("width", self.width), whole("height", self.height), at_least("share", self.share)


NO_IMAGE, TEN, HUNDRED = Fixed(0), Fixed(10), Fixed(100)


@final
@dataclass(frozen=True)
class Mix:
    """A mix of requests whose columns are independent; `pages` is how many pages each request stands for.

    `image` is a distribution of image tokens, or a list of `Image` with `tokens_of_size`. `longest` cuts the answer,
    as `max_tokens` does.

    >>> sizes = [Image(640, 480), Image(1024, 1024)]
    >>> mix = Mix(sizes, output=Fixed(20), tokens_of_size=lambda width, height: width * height / 4096)
    >>> requests = mix.requests(4)
    >>> sorted(requests.prefill_tokens.tolist()), requests.decode_context
    ([85.0, 85.0, 266.0, 266.0], 185.5)
    """

    image: Distribution | Sequence[Image] = NO_IMAGE
    prompt: Distribution = TEN
    output: Distribution = HUNDRED
    pages: float = 1.0
    longest: float = 1e9
    tokens_of_size: TokensOfSize | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        at_least("pages", self.pages), at_least("longest", self.longest, 1)
        if not isinstance(self.image, Distribution):
            if self.tokens_of_size is None:
                raise InputError("image sizes need tokens_of_size, which tells the tokens of a width and a height")
            if not self.image or not sum(one.share for one in self.image):
                raise InputError("image must be a distribution of tokens, or sizes with shares above 0")

    def requests(self, count: int = 2048, seed: int = 0, *, spread: bool = True) -> Requests:
        """`count` requests of the mix, the same ones for the same seed.

        Spread evenly over each distribution, in random pairs (a Latin hypercube), or drawn at random. Whole tokens.
        """
        random = np.random.default_rng(seed)
        levels = [self._levels(random, whole("count", count), spread) for _ in range(3)]
        width, height, image = self._images(levels[0])
        prompt = np.maximum(np.rint(self.prompt.quantile(levels[1])), 0)
        output = np.clip(np.rint(self.output.quantile(levels[2])), 1, self.longest)
        return Requests(np.rint(image), prompt, output, np.full(count, self.pages), width, height)

    @staticmethod
    def _levels(random: np.random.Generator, count: int, spread: bool) -> Array:
        return (random.permutation(count) + 0.5) / count if spread else random.random(count)

    def _images(self, levels: Array) -> tuple[Array, Array, Array]:
        """Width, height and tokens of the images at some levels of their distribution."""
        if isinstance(self.image, Distribution):
            return np.zeros_like(levels), np.zeros_like(levels), self.image.quantile(levels)
        tokens_of = self.tokens_of_size or (lambda width, height: 0)
        which = Empirical(range(len(self.image)), [one.share for one in self.image]).quantile(levels).astype(int)
        rows = np.array([(one.width, one.height, tokens_of(one.width, one.height)) for one in self.image], np.float64)
        return rows[which, 0], rows[which, 1], rows[which, 2]
