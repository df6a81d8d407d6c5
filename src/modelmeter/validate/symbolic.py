"""The identities of a model: layer by layer, and its decoder whole. The table of `modelmeter validate --symbolic`.

Zero is a proof for every batch, prompt and context in the domain of the trace, where a comparison at points is none.
What is not zero is printed as what it is: terms that one of the two has and the other has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch

from modelmeter.config import load_model
from modelmeter.layers.decoder import in_steps
from modelmeter.report.tables import align
from modelmeter.sizes import symbol
from modelmeter.tracing.api import trace
from modelmeter.validate.case import LayerAt
from modelmeter.validate.decoders import fields_of, module_of, runtime_of
from modelmeter.validate.identity import PEAK, Identity, identity, residuals, traced_layer, where, zero
from modelmeter.validate.registry import reference

QUANTITIES = {
    "tensor_core_flops": "FLOPs", "cuda_core_flops": "scalar operations", "parameters": "parameters",
    "kernel_io_bytes": "kernel bytes", PEAK: "peak activations", "kv_cache_bytes": "KV cache",
}  # fmt: skip
"""What is subtracted, as tables call it."""
DECODER = {
    "cuda_core_flops": "one rotary table for all sequences, ours one for each",
    PEAK: "the body of transformers' decoder returns before its head runs, and has one rotary table for all sequences",
}
"""What is not zero of a whole decoder, and why."""
_NOTES = """\
0: ours - traced is the number zero for all of the sizes; -: neither has any. Counted as docs/counting.md says, kernel
bytes are operands of matmuls, convolutions and attention; peaks are of code as it runs, at sizes of two or more."""


@cache
def identities(name: str) -> tuple[Identity, ...]:
    """Every layer of a model beside its traced module, and its decoder where that is one of a config.json."""
    found = reference(name)
    model = load_model(name, found.overrides)
    return (*map(identity, found.symbolic(model)), *_decoder(model, fields_of(name)))


def _decoder(model: Any, fields: Mapping[str, Any] | None) -> Iterator[Identity]:
    """Prefill, and any step after it, of a whole decoder."""
    if fields is None:
        return
    with torch.device("meta"):
        module = module_of(fields)
    decoder, theirs = getattr(model, "decoder", None) or model.stages[0].layer, trace(module, name=model.name)
    b, s, t = map(symbol, "bst")
    options = {"runtime": runtime_of(fields)}
    for stage, layer, given in (
        ("prefill", decoder, {"b": b, "s": s, "t": s}),
        ("decode", in_steps(decoder), {"b": b, "s": 1, "t": t}),
    ):
        ours = LayerAt(layer, given, options)
        found = residuals(ours, traced_layer(theirs, stage)._replace(options=options), QUANTITIES)
        sizes = {name: symbol(name) for name in traced_layer(theirs, stage).given}
        yield Identity(f"decoder, {stage}", type(module).__name__, found, DECODER, where(theirs, sizes, stage))


def rows(name: str) -> list[dict[str, Any]]:
    """The identities of a model as data: what is zero, what is not and why, for which sizes."""
    return [
        {"layer": one.layer, "where": one.where, "refused": one.refused, "proven": one.proven}
        | {"zero": [QUANTITIES[q] for q in QUANTITIES if q in one.residuals and zero(one.residuals[q])]}
        | {"others": [(QUANTITIES[q], str(one.residuals[q]), one.reasons.get(q, "")) for q in QUANTITIES
                      if q in one.residuals and not zero(one.residuals[q])]}
        for one in identities(name)
    ]  # fmt: skip


def run(name: str) -> tuple[str, bool]:
    """The identities of a model as a table, and whether all that must be zero is zero."""
    found, notes = identities(name), list[str]()
    table = [["layer", "reference class", *QUANTITIES.values(), "for all"]]
    for one in (one for one in found if not one.refused):
        cells = [_cell(one, quantity, notes) for quantity in QUANTITIES]
        table.append([one.layer, one.reference, *cells, one.where])
    refused = [f"{one.layer}: no identity: {one.refused}" for one in found if one.refused]
    wrong = [one for one in found if not one.refused and not one.proven]
    counted = f"{len(found)} rows: {len(found) - len(refused) - len(wrong)} identities, {len(refused)} not traced"
    verdict = f"{name}: {counted}" + (f", {len(wrong)} NOT EQUAL" if wrong else "")
    return "\n".join([align(table), "", _NOTES, *notes, *refused, verdict]), not wrong


def _cell(one: Identity, quantity: str, notes: list[str]) -> str:
    """A residual that is zero, or the number of the note that has it."""
    residual = one.residuals.get(quantity)
    if residual is None:
        return "-"
    if zero(residual):
        return "0"
    reason = one.reasons.get(quantity) or "NOT EQUAL"
    notes.append(f"[{len(notes) + 1}] {one.layer}, {QUANTITIES[quantity]}: ours - traced = {residual}: {reason}")
    return f"[{len(notes)}]"
