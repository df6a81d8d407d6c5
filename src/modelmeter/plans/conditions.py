"""What would have to be true for a figure: one quantity at a time is solved for, the others as they are.

A rate is the greatest that the closed form gives, when requests always wait: no target, no idle device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.fits import largest
from modelmeter.host import Host, Span
from modelmeter.models.model import BaseModel
from modelmeter.plans.asked import Asked, Page
from modelmeter.plans.forms import Form
from modelmeter.plans.spread import ENDS, Spread
from modelmeter.serving import ClosedForm, Service

MOST = 4096
"""The largest batch limit, number of cores or answer that is looked for."""


@final
@dataclass(frozen=True, eq=False)
class Case:
    """Pages of one kind on one device: image size, mode, lengths, runtime, limits."""

    model: BaseModel
    device: Device
    host: Host
    image_size: str
    prompt_tokens: int
    output_tokens: int
    mode: str | None = None
    runtime: str = "vllm"
    limit: int = 256
    batched: int = 8192
    host_threads: int = 1

    @cached_property
    def _engines(self) -> tuple[Asked, dict[str, Any]]:
        options: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "decode_steps": self.output_tokens,
            "runtime": self.runtime,
        }
        work = self.model.workload(image_size=self.image_size, mode=self.mode, **options)
        asked = Asked.of_pages(self.model, [Page(work)])
        return asked, Spread(asked, Form(), self.host, self.batched).ends(self.device)

    def answer(self, end: str = "point") -> ClosedForm:
        """One replica under these pages, its step times at an end of their intervals."""
        asked, engines = self._engines
        engine = replace(engines[end], max_num_seqs=self.limit, host_threads=self.host_threads)
        return ClosedForm(Service(engine), asked.requests)

    @property
    def image_tokens(self) -> int:
        """Tokens of a page's image."""
        return int(self._engines[0].requests.image_tokens[0])

    @cached_property
    def pages_per_day(self) -> Span:
        """Pages in 24 hours, at most; low where all step times are at their high end."""
        return self._span(lambda end: self.answer(end).greatest * 86400)

    def tokens_per_s(self, users: int) -> Span:
        """Output tokens a second with so many pages at once."""
        return self._span(lambda end: self.answer(end).users(users).output_tokens_per_s)

    @staticmethod
    def _span(of: Callable[[str], float]) -> Span:
        low, point, high = map(of, reversed(ENDS))
        return Span(low, point, high)


Met = Callable[[Case], bool]
"""Whether a case meets a figure."""


def pages_met(pages_per_day: float, end: str = "seconds") -> Met:
    """Whether a device bears so many pages a day, at the likely value or at an end (low, high)."""
    return lambda case: bool(getattr(case.pages_per_day, end) >= pages_per_day)


def tokens_met(tokens_per_s: float, users: int, end: str = "seconds") -> Met:
    """Whether a device gives so many tokens a second to as many users."""
    return lambda case: bool(getattr(case.tokens_per_s(users), end) >= tokens_per_s)


def _with(case: Case, key: str, value: Any) -> Case:
    changed: dict[str, Any] = {key: value}
    return replace(case, **changed)


def at_most(case: Case, key: str, met: Met) -> int | None:
    """The largest whole number of a field with which a case meets a figure; 0 if none does, None if all do."""
    found = largest(lambda value: value <= MOST and met(_with(case, key, value)), 1)
    return None if found is None or found >= MOST else found


def at_least(case: Case, key: str, met: Met) -> int | None:
    """The least whole number of a field with which a case meets a figure; None if none does."""
    found = largest(lambda value: value <= MOST and not met(_with(case, key, value)), 1)
    return None if found is None or found >= MOST else found + 1


def host_times_at_most(case: Case, met: Met) -> float | None:
    """How many times longer a step may wait for its host, at most, for a case to meet a figure; None: any time."""

    def slower(tenths: int) -> bool:
        step = replace(case.host, step=case.host.step * (tenths / 10))
        return met(replace(case, host=step))

    found = largest(lambda tenths: tenths <= MOST and slower(tenths), 1)
    return None if found is None or found >= MOST else found / 10


def modes(case: Case) -> list[Case]:
    """The case in each mode of the model that takes its image. Raises InputError for a model without images."""
    if case.model.planner is None:
        raise InputError(f"{case.model.name} takes no image")
    return [replace(case, mode=mode) for mode in case.model.planner.modes]
