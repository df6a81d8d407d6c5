"""What a model says of a row of measurements: a span of the quantity that the row measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelmeter.catalogue import load_devices, load_profiles
from modelmeter.config import load_model, read_yaml
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.folders import config_dir
from modelmeter.measured.process import memory_of
from modelmeter.measured.rows import Question
from modelmeter.models.model import BaseModel
from modelmeter.serving import ClosedForm, Fixed, Mix, Service
from modelmeter.serving.served import Served
from modelmeter.stations import Stations
from modelmeter.times import Host, Span, Times
from modelmeter.workload import Workload

LEAST_STEPS = 2
"""Tokens of an answer that a row does not tell, where it asks about none or about the whole request."""


def host() -> Host:
    """The host of configs/time.yaml."""
    return Host.of(read_yaml(config_dir() / "time.yaml")["host"])


def predicted(asked: Question) -> Span:
    """The quantity of a row, in its units. Raises InputError for what cannot be told, with the reason."""
    model, [device] = load_model(asked.model), load_devices([asked.device])
    found = Times(model, _work(model, asked), device, host())
    if asked.quantity == "memory":
        return memory_of(Fits(model, found.work))
    if asked.quantity == "preprocess":
        return found.images
    alone = asked.load.kind == "batch" or (asked.load.kind == "closed" and asked.load.size == 1)
    return _alone(found, asked) if alone else _shared(found, asked)


def _work(model: BaseModel, asked: Question) -> Workload:
    """The workload of one request."""
    options: dict[str, Any] = {
        "runtime": asked.runtime, "precision": dict(asked.precision), "prompt_tokens": max(asked.prompt_tokens, 1),
        "decode_steps": max(asked.decode_steps, LEAST_STEPS), "parallel": {"tensor": asked.devices},
    }  # fmt: skip
    if model.planner is None or (asked.image_size is None and asked.page is None):
        return model.text(options.pop("prompt_tokens"), **options)
    size: Any = asked.image_size
    if size is None:
        [page] = load_profiles([asked.page])
        size = page.image_size
    return model.workload(image_size=size, **options)


def _alone(found: Times, asked: Question) -> Span:
    """One request by itself."""
    prefill = found.stages["prefill"].span
    known: Mapping[str, Any] = {
        "ttft": lambda: found.ttft,
        "tpot": lambda: found.tpot,
        "e2e": lambda: found.request,
        "decode": lambda: found.tpot * float(found.work.decode_steps),
        "vision": lambda: found.stages["vision"].span if "vision" in found.stages else None,
        "prefill_tokens": lambda: _rate(prefill, float(found.work.context_tokens)),
        "decode_tokens": lambda: _rate(found.tpot, 1.0),
        "requests": lambda: _rate(found.request, 1.0),
        "pages": lambda: _rate(found.request, 1.0),
    }
    span: Span | None = known[asked.quantity]()
    if span is None:
        raise InputError(f"{asked.model} has no vision stage")
    return span


def _rate(span: Span, many: float) -> Span:
    return Span(many / span.high, many / span.seconds, many / span.low)


def _shared(found: Times, asked: Question) -> Span:
    """Many requests, by the closed form of serving; as unsure as one request is."""
    served = _served(found, asked)
    levels = {"median": "p50", "": "mean"}
    level = levels.get(asked.statistic, asked.statistic)
    spreads = {"ttft": served.ttft_s, "tpot": served.tpot_s, "e2e": served.e2e_s}
    rates = {
        "decode_tokens": served.output_tokens_per_s,
        "requests": served.requests_per_s,
        "pages": served.pages_per_s,
    }
    if asked.quantity in spreads:
        value = spreads[asked.quantity].at(level)
        value = spreads[asked.quantity].mean if value != value else value  # loops of users tell means alone
        one = found.tpot if asked.quantity == "tpot" else found.request
        return Span(value * one.low / one.seconds, value, value * one.high / one.seconds)
    if asked.quantity not in rates:
        raise InputError(f"{asked.quantity} of many requests at once is not told")
    one, value = found.request, rates[asked.quantity]
    return Span(value * one.seconds / one.high, value, value * one.seconds / one.low)


def _served(found: Times, asked: Question) -> Served:
    work = found.work
    image = float(work.image.tokens)
    mix = Mix(
        image=Fixed(image), prompt=Fixed(float(work.prompt_tokens)), output=Fixed(float(max(asked.decode_steps, 1)))
    )
    most = int(max(asked.load.size, 8)) if asked.load.kind == "closed" else 512
    form = ClosedForm(Service(Stations(found, max_num_seqs=min(most, 1024)).engine()), mix)
    if asked.load.kind == "closed":
        return form.users(int(asked.load.size))
    return form.at(asked.load.size) if asked.load.kind == "open" else form.most_load()
