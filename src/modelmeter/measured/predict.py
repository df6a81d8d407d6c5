"""What a model says of a row of measurements: a span of the quantity that the row measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelmeter.catalogue import load_devices, load_host, load_profiles
from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.fits import Fits
from modelmeter.host import NONE, Span
from modelmeter.measured.engines import Policy, policy_of
from modelmeter.measured.process import memory_of
from modelmeter.measured.rows import Question, names
from modelmeter.measured.served import shared
from modelmeter.models.model import BaseModel
from modelmeter.times import Times
from modelmeter.workload import Workload

LEAST_STEPS = 2
"""Tokens of an answer that a row does not tell, where it asks about none or about the whole request."""
TOWERS = "[!deh]*.W_*"
"""Weights of none of decoder, embedding and head: vision towers, which checkpoints of 8 and 4 bits leave in 16."""


def predicted(asked: Question) -> Span:
    """The quantity of a row, in its units. Raises InputError for what cannot be told, with the reason.

    Where the size of a page is open, the interval holds those of other pages that it may be.
    """
    found = _one(asked)
    if asked.page != names()["assumed"]["page"] or asked.quantity == "memory":
        return found
    others = [_one(replace(asked, image_size=size)) for size in names()["assumed"]["pages"]]
    return Span(min(one.low for one in (found, *others)), found.seconds, max(one.high for one in (found, *others)))


def _one(asked: Question) -> Span:
    model, [device] = load_model(asked.model), load_devices([asked.device])
    policy = policy_of(
        asked.given.get("engine", ""), device, asked.version, asked.offline, asked.given.get("hardware", "")
    )
    work = _work(model, asked)
    host = load_host()
    if asked.quantity != "preprocess":
        host = replace(host, pixel=host.pixel + policy.pixel)
    found = Times(model, work, device, host, policy.kernels or work.runtime.name, policy.overlaps)
    if asked.depth:
        others = (asked.depth, asked.prompt_tokens)
        before, by_itself = (
            replace(found, work=_work(model, replace(asked, prompt_tokens=many, depth=0))) for many in others
        )
        return _behind(found, before, by_itself, asked)
    if asked.quantity == "memory":
        return memory_of(Fits(model, found.work))
    if asked.quantity == "preprocess":
        return found.images
    alone = asked.load.kind == "batch" or (asked.load.kind == "closed" and asked.load.size == 1)
    if asked.layered > 1 and not alone:
        raise InputError("many users of layers that several devices have a part of each are not told")
    if alone:
        return _engined(_alone(found, asked), asked.quantity, policy, policy.request)
    low, own, high = policy.request  # a station has the point of it already
    return _engined(shared(found, asked, policy), asked.quantity, policy, Span(low - own, 0.0, high - own))


def _behind(found: Times, before: Times, alone: Times, asked: Question) -> Span:
    """The prefill of a prompt behind `depth` tokens: of all less that of those, no less than alone."""
    whole, less, least = (times.stages["prefill"].span for times in (found, before, alone))
    span: Span = _in_turn(whole * (max(whole.seconds - less.seconds, least.seconds) / whole.seconds), asked)
    return span if asked.quantity == "ttft" else _rate(span, float(found.work.batch) * asked.prompt_tokens)


def _in_turn(prefill: Span, asked: Question) -> Span:
    """A prefill whose m chunks go through n devices one behind another: m + n - 1 turns of a chunk's n parts."""
    chunks = -(-asked.prompt_tokens // asked.chunk) if asked.chunk else 1
    share = (chunks + asked.layered - 1) / (chunks * asked.layered)
    return Span(prefill.low * share, prefill.seconds * share, prefill.high)


def _engined(span: Span, quantity: str, policy: Policy, request: Span) -> Span:
    """With a server's time for a request; an old version may be slower: a rate may be lower, a time longer."""
    if quantity in ("ttft", "e2e"):
        span = span + request
    if quantity in ("ttft", "tpot", "e2e", "decode", "vision", "busy_prefill", "busy_decode"):
        return Span(span.low, span.seconds, span.high * policy.age.high)
    return Span(span.low / policy.age.high, span.seconds, span.high)


def _work(model: BaseModel, asked: Question) -> Workload:
    """The workload of one request, or of a static batch."""
    options: dict[str, Any] = {
        "runtime": asked.runtime, "precision": dict(asked.precision),
        "prompt_tokens": max(asked.depth + asked.prompt_tokens, 1),
        "decode_steps": max(asked.decode_steps, LEAST_STEPS), "parallel": {"tensor": asked.devices},
        "batch": int(asked.load.size) if asked.load.kind == "batch" else 1,
    }  # fmt: skip
    if asked.runtime.startswith("llama_cpp"):  # it makes no keys and values of a latent
        options["latent"] = "absorbed"
    pictured = asked.image_size is not None or asked.page is not None
    if pictured and model.planner is None:
        raise InputError(f"{asked.model} is the part of a model that reads text, and the row is about an image")
    if model.planner is None or not pictured:
        return model.text(options.pop("prompt_tokens"), **options)
    if own := asked.precision.get("overrides"):
        options["precision"]["overrides"] = {**own, TOWERS: "bf16"}
    size: Any = asked.image_size
    if size is None:
        [page] = load_profiles([asked.page])
        size = page.image_size
    several = len(model.planner.modes) > 1
    return model.workload(image_size=size, mode=asked.mode if several else None, **options)


def _alone(found: Times, asked: Question) -> Span:
    """One request by itself, or a batch that begins together."""
    prefill, many = _in_turn(found.stages["prefill"].span, asked), float(found.work.batch)
    text = float(found.work.prompt_tokens + found.work.decode_steps)
    known: Mapping[str, Any] = {
        "ttft": lambda: prefill if asked.layered > 1 else found.ttft,
        "tpot": lambda: found.tpot,
        "e2e": lambda: found.request,
        "decode": lambda: found.tpot * float(found.work.decode_steps),
        "busy_prefill": lambda: sum((one.device for one in found.stages.values() if one.stage != "decode"), NONE),
        "busy_decode": lambda: found.stages["decode"].device,
        "vision": lambda: found.stages["vision"].span if "vision" in found.stages else None,
        "prefill_tokens": lambda: _rate(prefill, many * float(found.work.context_tokens)),
        "prompt_tokens": lambda: _rate(found.request, many * float(found.work.prompt_tokens)),
        "decode_tokens": lambda: _rate(found.tpot, many),
        "all_tokens": lambda: _rate(found.request, many * text),
        "requests": lambda: _rate(found.request, many),
        "pages": lambda: _rate(found.request, many),
    }
    span: Span | None = known[asked.quantity]()
    if span is None:
        raise InputError(f"{asked.model} has no vision stage")
    return span


def _rate(span: Span, many: float) -> Span:
    return Span(many / span.high, many / span.seconds, many / span.low)
