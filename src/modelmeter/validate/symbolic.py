"""Identities: what our decoder costs less what transformers' module is traced to cost, as expressions of all sizes.

Zero is a proof for every batch, prompt and context in the domain of the trace, where a comparison at points is none.
What is not zero is printed as what it is: terms that one of the two has and the other has not.
"""

from __future__ import annotations

from typing import Any

import torch

from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.report.tables import align
from modelmeter.sizes import Size
from modelmeter.tracing.api import trace
from modelmeter.validate.decoders import module_of

PROVEN = ("tensor_core_flops", "parameters", "weight_bytes", "kv_cache_bytes", "kv_io_bytes")
"""What must be zero."""
TOLD = ("cuda_core_flops", "weight_io_bytes", "activation_io_bytes")
"""What code writes otherwise than an equation says it: kernels of its own, ids that are read, tables of positions."""


def residuals(name: str) -> dict[str, dict[str, Size]]:
    """Ours less the traced module by stage and quantity, under `flash`. Raises InputError for what has no config.json."""
    model: Any = load_model(name)
    if not getattr(model, "config", None):
        raise InputError(f"{name} has no config.json, of which transformers' own module could be made")
    with torch.device("meta"):
        module = module_of(model.config)
    work, traced = model.text(10, batch=2), trace(module, name=model.name)
    found = {}
    for stage in ("prefill", "decode"):
        ours, theirs = (one.program(stage, work).costs[""] for one in (model, traced))
        found[stage] = {count: getattr(ours, count) - getattr(theirs, count) for count in (*PROVEN, *TOLD)}
    return found


def run(name: str) -> tuple[str, bool]:
    """The residuals of a model as a table, and whether all that must be zero is zero for all sizes."""
    found = residuals(name)
    rows = [["quantity", "stage", "ours - traced"]]
    rows += [[count, stage, str(of[count])] for count in (*PROVEN, *TOLD) for stage, of in found.items()]
    zero = all(isinstance(of[count], int) and of[count] == 0 for of in found.values() for count in PROVEN)
    names = (
        "b: batch, s: tokens of the prompt, first and steps: contexts of the steps. Where all sequences have the same\n"
        "positions transformers makes one rotary table for them, ours has one for each; its unfused kernels move more."
    )
    verdict = f"{name}: {'identities' if zero else 'NOT EQUAL'} in {', '.join(PROVEN)}"
    return "\n".join([align(rows), "", names, verdict]), zero
