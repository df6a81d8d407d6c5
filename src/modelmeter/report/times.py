"""What a request takes on a device, as text: the answer first, then stages, components and the dearest kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelmeter.host import Span
from modelmeter.report.tables import align
from modelmeter.seconds.predict import Estimate
from modelmeter.seconds.shapes import weights_alone
from modelmeter.timeline import by_component, top
from modelmeter.times import Times, mean

DEAREST = 10
ALONE = "{} multiplies no {}: weights alone are stored so, products are in bf16"
UNITS = ((1e-3, 1e6, "us"), (1.0, 1e3, "ms"), (float("inf"), 1.0, "s"))
"""Below how many seconds which unit is used."""


def duration(seconds: float) -> str:
    """Seconds in the unit that fits, to four digits.

    >>> duration(3.6e-5), duration(0.0123456), duration(98.7654)
    ('36 us', '12.35 ms', '98.77 s')
    """
    factor, unit = next((factor, unit) for below, factor, unit in UNITS if seconds < below)
    return f"{seconds * factor:.4g} {unit}"


def times_text(found: Sequence[Times]) -> str:
    """The answer for each device, and the tables of the first."""
    one = found[0]
    work, model = one.work, one.model
    told = (
        "each figure: the point, and the interval that nine of ten are expected in; least: the datasheet at the least "
        "traffic of any fusion, a bound that nothing reaches"
    )
    tables = [_stages(one), _components(one), _kernels(one)]
    own = [f"{one.on.title}, confidence {one.on.confidence}"] if len(found) > 1 else []
    derived = sorted({estimate.derived for stage in one.stages.values() for _, estimate in stage.kernels} - {""})
    formats = {form for stage in one.stages.values() for kernel, _ in stage.kernels for form in kernel.tensor_flops}
    alone = [ALONE.format(one.on.name, units) for units in weights_alone(one.on, formats)]
    left_out = "left out: reading and decoding image files, the network, other requests, a cache of prefixes"
    head = [*map(_answer, found), "", request_line(one), model.basis(work), told, left_out]
    return "\n".join([*head, *alone, *derived, *own, *(part for table in tables for part in ("", table)), *model.notes])


def request_line(found: Times) -> str:
    """What is asked: image, prompt, answer, batch."""
    work, model = found.work, found.model
    image = work.image.describe() if work.image.views or not model.planner else "text alone, without an image"
    return f"{image}; {work.prompt_tokens:,} prompt tokens and an answer of {work.decode_steps:,}; batch {work.batch:,}"


def _answer(found: Times) -> str:
    """TTFT, TPOT and the page, and what binds."""
    figures = f"TTFT {span_text(found.ttft)}, TPOT {span_text(found.tpot)}, the request {span_text(found.request)}"
    binds = ", ".join(f"{name} {stage.binds}" for name, stage in found.stages.items())
    images = f", images {span_text(found.images)} of it" if found.images.seconds else ""
    return f"{found.model.name} on {found.on.title}, {found.work.execution}: {figures}{images}; {binds}"


def span_text(span: Span) -> str:
    """The point, and the interval."""
    return f"{duration(span.seconds)} ({duration(span.low)} to {duration(span.high)})"


def _stages(found: Times) -> str:
    rows = [["stage", "seconds", "low", "high", "device busy", "host", "step", "least", "kernels", "binds"]]
    if found.images.seconds:
        ends = (found.images.seconds, found.images.low, found.images.high)
        host = duration(found.images.seconds)
        rows.append(["images", *map(duration, ends), "-", host, "-", "-", "-", "host-bound"])
    for name, stage in found.stages.items():
        span = stage.span
        parts = (span.seconds, span.low, span.high, stage.device.seconds, stage.launches.seconds, stage.step.seconds)
        title = "decode, a step" if name == "decode" else name
        rows.append([title, *(duration(p) for p in parts), duration(stage.bound), f"{stage.runs:,.0f}", stage.binds])
    return align(rows)


def _components(found: Times) -> str:
    """Where the device is busy, by component of each stage."""
    rows = [["component", "device busy", "% of the stage", "binds"]]
    for name, stage in found.stages.items():
        for part, own in by_component(stage, top).items():
            share = own.device.seconds / max(stage.device.seconds, 1e-30)
            rows.append([f"{name}: {part or name}", duration(own.device.seconds), f"{100 * share:.1f}", own.binds])
    return align(rows)


def _kernels(found: Times) -> str:
    """The dearest kernels of the whole request."""
    times = {name: found.work.decode_steps if name == "decode" else 1 for name in found.stages}
    every = [
        (times[name] * mean(kernel.runs * np.asarray(estimate.seconds)), name, kernel, estimate)
        for name, stage in found.stages.items()
        for kernel, estimate in stage.kernels
    ]
    total = max(sum(row[0] for row in every), 1e-30)
    rows = [["kernel", "in", "runs", "one run", "all", "% of busy", "law", "binds"]]
    for seconds, name, kernel, estimate in sorted(every, key=lambda row: -row[0])[:DEAREST]:
        runs = times[name] * mean(kernel.runs)
        what = kernel.ops[0] + (f" and {len(kernel.ops) - 1} more" if len(kernel.ops) > 1 else "")
        cells = [f"{runs:,.0f}", duration(seconds / runs), duration(seconds), f"{100 * seconds / total:.1f}"]
        rows.append([what, f"{name}: {kernel.path}", *cells, _law(estimate), _bound(estimate)])
    return align(rows)


def _law(estimate: Estimate) -> str:
    return estimate.law if estimate.variant == "bf16" else f"{estimate.law} {estimate.variant}"


def _bound(estimate: Estimate) -> str:
    return f"{np.asarray(estimate.binds).reshape(-1)[-1]}"
