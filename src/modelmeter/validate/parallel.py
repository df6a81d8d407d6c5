"""transformers' own tensor parallelism beside ours: one rank of a process group that exists in name only.

The plan is that of the released class (`tp_plan`), weights are DTensors on the meta device, and what a rank sends is
seen operator by operator. Experts run as one batched product, as in `decoders.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

from modelmeter.layers.base import BaseLayer
from modelmeter.runtimes.parallel import Parallel
from modelmeter.validate.counters import tensor_core_flops, tensors_in
from modelmeter.validate.decoders import cache_of, cached_bytes, forward, module_of, runtime_of

_KINDS = {"allreduce_": "all_reduce", "all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather"}
"""Collectives by the names of torch's operators."""
BF16 = 2
"""Bytes of an element of an activation."""


class Rank(NamedTuple):
    """What one device holds and does in a call: `sent` counts collectives by kind and elements of the result."""

    parameters: int
    tensor_core_flops: int
    kv_cache_bytes: int
    sent: Counter[tuple[str, int]]


class _Sent(TorchDispatchMode):
    """Sees every collective of plain tensors; those of DTensors are made of such."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            self.found[_KINDS[name], tensors_in(result)[0].numel()] += 1
        return result


@contextmanager
def mesh_of(devices: int) -> Iterator[DeviceMesh]:
    """A mesh of so many devices, of which this process is the first and the others do not exist."""
    distributed.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (devices,), mesh_dim_names=("tp",))
    finally:
        distributed.destroy_process_group()


def theirs(fields: Mapping[str, Any], parallel: Parallel, batch: int, tokens: int, past: int = 0) -> Rank:
    """The first rank of transformers' module, on `tokens` more of each sequence.

    Experts are those of a rank each if `parallel` has them so, and their sums are added up.
    """
    with torch.device("meta"), torch.no_grad(), mesh_of(parallel.tensor) as mesh:
        module, expert = module_of(fields), parallel.expert > 1
        plans = {"tp": dict(module.tp_plan), "ep": dict(module.ep_plan) if expert else {}}
        plans["tp"] = {k: v for k, v in plans["tp"].items() if not any(k.startswith(e) for e in plans["ep"])}
        expanded = {key: module._expand_parallel_plan(plan) for key, plan in plans.items()}
        head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
        tied = head.weight is embedding.weight
        if tied:
            del expanded["tp"]["lm_head.weight"]
        apply_tensor_parallelism(module, mesh, expanded["tp"])
        if tied:
            head.weight = embedding.weight
        if expert:
            apply_expert_parallelism(module, mesh, mesh, expanded["ep"], ep_implementation="all_reduce")
        cache, sent = cache_of(module), _Sent()
        if past:
            forward(module, batch, past, cache)
        with sent:
            flops = tensor_core_flops(lambda: forward(module, batch, tokens, cache))
        local = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
        return Rank(sum(p.numel() for p in local), flops, cached_bytes(cache), sent.found)


def ours(
    fields: Mapping[str, Any], decoder: BaseLayer, parallel: Parallel, batch: int, tokens: int, past: int = 0
) -> Rank:
    """One device of a decoder at the same call."""
    sizes = {"b": batch, "s": tokens, "t": past + tokens}
    program = decoder.program(runtime=runtime_of(fields), parallel=parallel)
    cost = program(**sizes)[""]
    sent: Counter[tuple[str, int]] = Counter()
    for kernel in (k for k in program.kernels(**sizes) if k.collective):
        sent[kernel.collective, sum(kernel.written_bytes.values()) // BF16] += kernel.runs
    return Rank(cost.parameters, cost.tensor_core_flops, cost.kv_cache_bytes, sent)
