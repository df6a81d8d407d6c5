"""Causal language models of transformers: prefill and decode with the model's own cache, experts, what is stubbed.

A stub stands for code that looks at the values of tensors; results say which there were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from transformers import DynamicCache
from transformers.integrations import moe

from modelmeter.errors import InputError
from modelmeter.sizes import Size, added, ratio, symbol
from modelmeter.tracing.capture import DATA_DEPENDENT
from modelmeter.tracing.operators import Recorder
from modelmeter.tracing.records import Record, Run
from modelmeter.tracing.run import Tracer, taint

EXPERTS = "modelmeter_trace"
"""The name of the experts' implementation that says what is stored and what is touched."""
PACKED = "packed sequences are not looked for (find_packed_sequence_indices)"
STUBS = {"transformers.masking_utils.find_packed_sequence_indices": lambda position_ids: None}
REAL = "transformers.utils.import_utils.is_fake_tensor"
"""By what transformers tells fake tensors from real ones, which it runs otherwise."""
UNCACHED = (ValueError, TypeError, AttributeError, IndexError, KeyError)
"""What modules raise that have no use for a cache as transformers makes it."""
WITHOUT_CACHE = "run without a cache, which its code does not take"
_recorders: list[Recorder] = []


def _experts(self: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """E experts are stored, each token is computed by k of them; the work is that of a batch of products."""
    run = partial(moe.batched_mm_experts_forward, self, hidden_states, top_k_index, top_k_weights)
    if not _recorders:
        return run()
    with _recorders[-1].experts(self.num_experts, top_k_index.size(-1), hidden_states.size(0)):
        return run()


moe.ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _experts)


@contextmanager
def known_to_transformers(tracer: Tracer, plain: bool = False) -> Iterator[None]:
    """Stubs, experts, and positions of rotary tables, which belong to the request."""
    recorder = tracer.recorder

    def reach(module: Any, args: Any, kwargs: Any) -> None:
        if recorder.watch.on:
            taint(recorder, (args[1:], kwargs.get("position_ids")))

    with ExitStack() as stack:
        real = {REAL: lambda tensor: False} if plain else {}
        for target, stub in (STUBS | real).items():
            stack.enter_context(patch(target, stub))
        for name, module in tracer.module.named_modules():
            if "Rotary" in type(module).__name__ and name:
                stack.callback(module.register_forward_pre_hook(reach, with_kwargs=True).remove)
        _recorders.append(recorder)
        stack.callback(_recorders.pop)
        yield


def set_experts(module: torch.nn.Module, name: str = EXPERTS) -> None:
    """Choose the implementation of a module's experts."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = name


def prefill(module: Any, name: str, hints: Mapping[str, int], *, concrete: bool = False) -> Run:
    """A prompt of s tokens and an empty cache, b at once."""
    try:
        return _attempted(lambda plain: _run(module, hints, name, plain, concrete, decode=False))
    except InputError as error:
        if isinstance(error.__cause__, InputError) or not isinstance(error.__cause__, UNCACHED):
            raise
    return _attempted(lambda plain: _uncached(module, name, hints, plain, concrete))


def _uncached(module: Any, name: str, hints: Mapping[str, int], plain: bool, concrete: bool) -> Run:
    """A prompt of s tokens, b at once, of a module that takes no cache."""
    set_experts(module)
    tracer = Tracer(module, name, concrete=concrete)
    b, s = (tracer.session.size(axis, hints[axis]) for axis in "bs")
    with known_to_transformers(tracer, plain):
        ids = tracer.input("input_ids", tracer.session.tensor((b, s), torch.int64))
        out = tracer.call(lambda m: m(input_ids=ids, use_cache=False))
    run = tracer.result(("b", "s"))
    del out
    run.notes.extend((PACKED, WITHOUT_CACHE))
    return run if concrete else _with_logits(run, module, symbol("b"), symbol("s"))


def decode(module: Any, name: str, hints: Mapping[str, int], *, concrete: bool = False) -> Run:
    """One token on a cache that a prompt of p tokens has filled: a context of t = p + 1 tokens, its own included."""
    return _attempted(lambda plain: _run(module, hints, name, plain, concrete, decode=True))


def _attempted(run: Any) -> Run:
    """The run as code runs on real tensors, or as it is traced by transformers where that needs values."""
    try:
        return run(True)
    except InputError as error:
        if not isinstance(error.__cause__, DATA_DEPENDENT):
            raise
        return run(False)


def _run(module: Any, hints: Mapping[str, int], name: str, plain: bool, concrete: bool, *, decode: bool) -> Run:
    set_experts(module)
    tracer = Tracer(module, name, concrete=concrete)
    session = tracer.session
    b = session.size("b", hints["b"])
    cache = DynamicCache(config=module.config)
    with known_to_transformers(tracer, plain):
        if decode:
            p = session.size("p", hints["p"], symbol("t") - 1)
            past = session.tensor((b, p), torch.int64)
            tracer.call(lambda f: f(input_ids=past, past_key_values=cache, use_cache=True), record=False)
            _enter(tracer, cache)
            ids = tracer.input("input_ids", session.tensor((b, 1), torch.int64))
        else:
            s = session.size("s", hints["s"])
            ids = tracer.input("input_ids", session.tensor((b, s), torch.int64))
        out = tracer.call(lambda f: f(input_ids=ids, past_key_values=cache, use_cache=True))
    run = tracer.result(("b", "t") if decode else ("b", "s"))
    run.notes.append(PACKED)
    run = _with_cache(tracer, run, cache)
    del out
    return run if concrete else _with_logits(run, module, symbol("b"), 1 if decode else symbol("s"))


def _kept(cache: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a cache by layer and name."""
    for number, layer in enumerate(cache.layers):
        for key, value in vars(layer).items():
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.numel() != 0:
                yield f"{number}.{key}", value


def _enter(tracer: Tracer, cache: Any) -> None:
    """The tensors of a filled cache are inputs."""
    for name, tensor in _kept(cache):
        tracer.recorder.enter(f"C_{name}", tensor, role="kv", input=True)


def _with_cache(tracer: Tracer, run: Run, cache: Any) -> Run:
    """What the cache holds has the role kv: a concatenation adds to it, the old one is what it held before."""
    watch, storages, records = tracer.recorder.watch, list(run.storages), list(run.records)
    makers = {o.storage: index for index, r in enumerate(records) for o in r.writes}
    for name, tensor in _kept(cache):
        index = watch.index(tensor)
        size = tracer.session.reader.size(tensor.numel())
        if index not in makers or storages[index].role != "activation":
            continue
        maker = records[makers[index]]
        own = f"{maker.path}.C_{name.partition('.')[2]}".lstrip(".")
        storages[index] = replace(storages[index], role="kv", name=own, elements=size, dies=None)
        new = tuple(o for o in maker.reads if storages[o.storage].role != "kv")
        touched = added(o.touched for o in new) if maker.name == "cat" else maker.writes[0].touched
        writes = tuple(o._replace(touched=touched) if o.storage == index else o for o in maker.writes)
        axes = {**maker.axes, "w": touched}
        writes = tuple(o._replace(axes="w") if o.storage == index else o for o in writes)
        records[makers[index]] = replace(maker, reads=new, writes=writes, axes=axes, factors=len(new))
    return replace(run, storages=storages, records=records)


def _with_logits(run: Run, module: Any, b: Size, s: Size) -> Run:
    """The head, and what is made of its results, by batch and position, so that the last one may stand alone."""
    head = module.get_output_embeddings()
    path = next((p for p, m in module.named_modules() if m is head and p), None)
    made: set[int] = set()
    records = []
    for record in run.records:
        if record.path == path and record.kind == "matmul":
            record = _by_position(record, b, s)
            made |= {o.storage for o in record.writes}
        elif any(o.storage in made for o in record.reads) and record.kind in ("pointwise", "copy"):
            record = _elementwise(record, b, s)
            made |= {o.storage for o in record.writes}
        records.append(record)
    return replace(run, records=records)


def _by_position(record: Record, b: Size, s: Size) -> Record:
    """A product whose rows are batch and positions."""
    if record.axes.get("m") != b * s:
        return record
    axes = {**{a: size for a, size in record.axes.items() if a != "m"}, "b": b, "s": s}
    moved = lambda o: o._replace(axes=o.axes.replace("m", "b s"))
    reads, writes = tuple(map(moved, record.reads)), tuple(map(moved, record.writes))
    return replace(record, reads=reads, writes=writes, axes=axes, label="logits:0")


def _elementwise(record: Record, b: Size, s: Size) -> Record:
    """An operator on logits, by batch, position and entry."""
    wide = record.writes[0].touched
    each = _entries(wide, b, s)
    if each is None or len(record.writes) > 1:
        return record
    axes = {**record.axes, "b": b, "s": s, "o": each}
    reads = tuple(o._replace(axes="b s o") if o.touched == wide else o for o in record.reads)
    writes = (record.writes[0]._replace(axes="b s o"),)
    return replace(record, reads=reads, writes=writes, axes=axes, label="logits:0")


def _entries(wide: Size, b: Size, s: Size) -> int | None:
    """The entries of each position, if all have the same number."""
    found = ratio(wide, b * s)
    return found if isinstance(found, int) else None
