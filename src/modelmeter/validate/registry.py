"""The models that have reference modules, and what is asked of them: the table of `modelmeter validate`, its rows as
data, the counts of a workload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.models.model import BaseModel
from modelmeter.report.tables import align, si
from modelmeter.validate import decoders, deepseek_ocr, deepseek_ocr_stages, deepseek_ocr_vendor
from modelmeter.validate.case import Case, Comparison, compare
from modelmeter.validate.counters import tensor_core_flops
from modelmeter.validate.cross import mbart_cases
from modelmeter.validate.towers import CASES
from modelmeter.validate.vendor import found_cases
from modelmeter.workload import NO_IMAGE, View, Workload

Cases = Callable[[Any], Iterable[Case]]


@dataclass(frozen=True)
class Reference:
    """What a model is compared with: cases of its layers and stages, one of a workload's vision, vendor's classes.

    `overrides` are those under which our model has the kernels of the reference modules; `symbolic` are the cases that
    are proven for all sizes, `missing` says what is not compared, and why.
    """

    overrides: tuple[str, ...]
    layers: Cases
    stages: Cases
    vision: Callable[[Any, Workload], Case]
    vendor: Cases
    symbolic: Cases
    missing: Callable[[Any], Sequence[str]] = lambda model: ()


def _no_vision(model: Any, work: Workload) -> Case:
    raise InputError(f"{model.name} has no vision stage as one module to compare with")


def _nothing(model: Any) -> tuple[Case, ...]:
    return ()


PAGE = "640x480"
"""The image whose view the towers see."""


def _with_tower(name: str) -> Reference:
    """The reference of a vision-language model: its tower and projector on a view of a page, its decoder."""

    def seen(model: Any) -> Iterable[Case]:
        view, patch = model.workload(image_size=PAGE).image.views[0], model.planner.patch
        return CASES[name](model, view.height // patch, view.width // patch)

    def layers(model: Any) -> Iterable[Case]:
        if model.join is None:
            return [*seen(model), *mbart_cases(model.decoder, (1, 1, 588), (2, 33, 588))]
        fields = decoders.fields_of(name)
        return [*seen(model), *(decoders.decoder_cases(fields, model.decoder) if fields else ())]

    def missing(model: Any) -> list[str]:
        if model.join is None:
            return []
        decoder = "decoder: not compared here: its configuration is none of a causal model of transformers"
        return [
            "join: not compared: it copies the image's tokens, and no module does so alone",
            *([decoder] if decoders.fields_of(name) is None else []),
            f"vision is the first view of an image of {PAGE} pixels",
        ]

    return Reference((), layers, _nothing, _no_vision, _nothing, seen, missing)


REFERENCES: dict[str, Reference] = {
    "deepseek_ocr": Reference(
        deepseek_ocr.OVERRIDES, deepseek_ocr.layer_cases, deepseek_ocr_stages.stage_cases,
        deepseek_ocr_stages.vision_case, deepseek_ocr_vendor.vendor_cases, deepseek_ocr.identity_cases,
    ),
} | {name: _with_tower(name) for name in CASES if name in config_names("model")}  # fmt: skip
"""The references by the names of models; a vision-language model has one as soon as `towers.py` has its cases."""
CONFIG_JSON = Reference((), decoders.layer_cases, _nothing, _no_vision, _nothing, _nothing)
"""The reference of every model that is made of a config.json."""


def reference(name: str) -> Reference:
    """The reference of a model: its own, or that of every config.json. Raises InputError if it has none."""
    if name not in REFERENCES and getattr(load_model(name), "config", None) is not None:
        return CONFIG_JSON
    if name not in REFERENCES:
        raise InputError(f"model {name!r} has no reference modules to compare with; {', '.join(REFERENCES)} have")
    return REFERENCES[name]


def cases(name: str, layers_only: bool = False) -> list[Case]:
    """Every layer of a model, and its stages at full size, beside the reference modules."""
    found = reference(name)
    model = load_model(name, found.overrides)
    return [*found.layers(model), *(() if layers_only else found.stages(model))]


@cache
def comparisons(name: str) -> tuple[Comparison, ...]:
    """Every layer and stage of a model compared."""
    return tuple(map(compare, cases(name)))


def comparison_rows(name: str) -> list[dict[str, Any]]:
    """The comparison of every layer and stage as data: its main quantity, and whether all quantities are equal."""
    return [
        {key: getattr(found.case, key) for key in ("layer", "group", "reference")}
        | {"quantity": found.main, "measured": found.measured[found.main], "theoretical": found.theoretical[found.main]}
        | {"compared": len(found.measured), "equal": found.equal}
        for found in comparisons(name)
    ]


def reference_counts(model: BaseModel, work: Workload) -> dict[str, int]:
    """What FlopCounterMode counts on the real modules for the vision stage of a workload."""
    shipped: Any = load_model(model.name)
    if any(getattr(model, part, None) != getattr(shipped, part) for part in ("tower", "projector", "decoder")):
        raise InputError("reference=true counts the model as shipped; leave out overrides of model dimensions")
    views = (replace(view, name="", tokens=0) for view in work.image.views)  # modules do not see how crops are arranged
    return {"reference_tensor_core_flops": sum(_counted(model.name, view, work.batch) for view in views)}


@cache
def _counted(name: str, view: View, batch: int) -> int:
    """FLOPs of one view, which many workloads of a sweep share."""
    case = reference(name).vision(load_model(name), Workload(replace(NO_IMAGE, views=(view,)), batch=batch))
    with torch.no_grad(), torch.device("meta"):
        module, inputs = case.build()
        return tensor_core_flops(lambda: case.run(module, *inputs))


def run(name: str, *, vendor: str | None = None, device: str = "meta", layers_only: bool = False) -> tuple[str, bool]:
    """The table of a model as text, and whether every count is equal.

    `vendor` is a folder with the vendor's own Python files; `device` cpu or cuda also runs real
    tensors. Raises InputError for a device that torch does not have or a folder that is none.
    """
    if device not in ("meta", "cpu") and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"--device {device!r} is not available; valid: meta, cpu, cuda on a machine that has it")
    compared, lacking = cases(name, layers_only), list(reference(name).missing(load_model(name)))
    results = [compare(case) for case in compared]
    if vendor is not None:
        theirs = list(reference(name).vendor(load_model(name)))
        found, absent = found_cases(vendor, theirs)
        lacking += absent
        layers = dict.fromkeys(case.layer.partition(" (")[0] for case in compared if case.group != "stage")
        others = [layer for layer in layers if layer not in {case.layer for case in theirs}]
        lacking.append(f"no class of the vendor's files: {', '.join(others)}")
        for case in found:
            try:
                results.append(compare(case))
            except Exception as error:  # whatever a stranger's class raises is for the user to read
                lacking.append(f"vendor class {case.layer}: cannot be run here ({type(error).__name__}: {error})")
    unequal = sum(not result.equal for result in results)
    verdict = f"{len(results)} rows, " + (f"{unequal} NOT EQUAL" if unequal else "all equal")
    return "\n".join([_table(results, device), *lacking, verdict]), not unequal


_HEAD = ["layer", "group", "reference class", "measured FLOPs", "theoretical FLOPs", "difference"]
_OTHERS = {"cuda_core_flops": "scalar ops", "parameters": "parameters", "kernel_io_bytes": "kernel bytes"}
_NOTES = """\
* torch's counter sees nothing here by nature: scalar operations of the unfused graph instead.
Columns after `difference` are differences too; - is not compared. Counted in: scalar ops and kernel bytes
(operands of matmuls, convolutions and attention) as docs/counting.md says."""


def _table(results: Sequence[Comparison], device: str) -> str:
    """The comparisons as text, with notes; on a device other than meta their times too."""
    rows = [[*_HEAD, *_OTHERS.values()] + (["time", "memory"] if device != "meta" else [])]
    for result in results:
        case, main, difference = result.case, result.main, result.difference
        mark = "*" if case.unseen else ""
        counts = [f"{count[main]}{mark}" for count in (result.measured, result.theoretical)]
        differences = (difference.get(quantity) for quantity in (main, *_OTHERS))
        signed = ["-" if value is None else f"{value:+d}" if value else "0" for value in differences]
        real = _real(case, device) if device != "meta" else []
        rows.append([case.layer, case.group, case.reference, *counts, *signed, *real])
    return "\n".join([align(rows), "", _NOTES, *_allowances(results)])


def _allowances(results: Iterable[Comparison]) -> list[str]:
    """Which quantities are compared with an allowance or not at all."""
    layers: dict[str, list[str]] = {}
    for case, counted in ((result.case, result.measured) for result in results):
        reasons = [
            f"{quantity} adjusted: {reason}" for quantity, (_, reason) in case.known.items() if quantity in counted
        ]
        for reason in (*reasons, *(f"{quantity} not compared: {reason}" for quantity, reason in case.skip.items())):
            layers.setdefault(reason, []).append(case.layer)
    return [f"{reason} ({', '.join(some)})" for reason, some in layers.items()]


def _real(case: Case, device: str) -> list[str]:
    """Median time of the module on real tensors, and the most memory allocated on a GPU."""
    with torch.device(device):
        module, inputs = case.build()
    cuda, times = device.startswith("cuda"), list[float]()
    with torch.no_grad():
        for _ in range(6 if cuda else 2):
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            case.run(module, *inputs)
            if cuda:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    memory = si(float(torch.cuda.max_memory_allocated(device)), "B") if cuda else "-"
    warm = sorted(times[1:])
    return [f"{warm[len(warm) // 2] * 1e3:.3f} ms", memory]
