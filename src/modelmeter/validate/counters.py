"""What torch sees of a real module: FLOPs, scalar operations, operand bytes, live storages.

Modules run on the meta device (or a real one). `tensor_core_flops` is torch's own FlopCounterMode;
the others watch every dispatched operator. An operator that a counter does not know is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any, Self

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from modelmeter.tracing.scalars import attention_flops, scalar_flops


def tensor_core_flops(run: Callable[[], Any]) -> int:
    """FLOPs that torch's FlopCounterMode counts while `run` runs."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class _AttentionMode(TorchFunctionMode):
    """Runs scaled_dot_product_attention as one kernel that only allocates its result; `told` runs it besides."""

    def __init__(
        self, seen: Callable[[list[torch.Tensor], torch.Tensor], None], told: Callable[[Callable[[], Any]], None]
    ) -> None:
        super().__init__()
        self.seen, self.told = seen, told

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        reads = [given[name] for name in ("query", "key", "value", "attn_mask") if given.get(name) is not None]
        out = reads[0].new_empty((*reads[0].shape[:-1], reads[2].shape[-1]))
        self.told(lambda: func(*args, **(kwargs or {})))
        self.seen(reads, out)
        return out


class Watch(TorchDispatchMode):
    """Sees every operator, and attention as one kernel; torch's counter around it sees what torch makes of attention."""

    def __init__(self, counted: bool = False) -> None:
        super().__init__()
        self._counted, self._passes = counted, False
        self._mode = _AttentionMode(self.attention, self._tell)

    def _tell(self, attention: Callable[[], Any]) -> None:
        """Run it for the counter that is around this mode, if one is, and see nothing of it."""
        if self._counted:
            self._passes = True
            attention()
            self._passes = False

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        """Called for each attention kernel with what it reads and makes."""
        raise NotImplementedError

    def during(self, run: Callable[[], Any]) -> None:
        """Watch while `run` runs."""
        with self:
            run()

    def __enter__(self) -> Self:
        super().__enter__()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        super().__exit__(*error)


class OperandBytes(Watch):
    """Bytes that matmuls, convolutions and attention kernels read and write."""

    _KERNELS = ("mm", "addmm", "bmm", "baddbmm", "convolution")

    def __init__(self, counted: bool = False) -> None:
        super().__init__(counted)
        self.bytes = 0

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        self.bytes += _bytes([*reads, out])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self._KERNELS and not self._passes:
            self.bytes += _bytes(tensors_in((args, kwargs)) + tensors_in(result))
        return result


class ScalarOperations(OperandBytes):
    """Counts, beside them, CUDA-core FLOPs of the unfused graph by the convention of docs/counting.md.

    Only arithmetic on data that depends on the inputs counts: what depends on weights and shapes
    alone (interpolated position tables, index arithmetic) is the same for every call.
    """

    def __init__(self, inputs: Any, counted: bool = False) -> None:
        super().__init__(counted)
        self.flops = 0
        self._tainted: dict[int, Any] = {}  # storages by address, kept alive so that none is used again
        self._taint(inputs)

    def _taint(self, result: Any) -> None:
        storages = (tensor.untyped_storage() for tensor in tensors_in(result))
        self._tainted |= {storage._cdata: storage for storage in storages}

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        super().attention(reads, out)
        rows, keys = prod(reads[0].shape[:-1]), reads[1].shape[-2]
        bias = len(reads) > 3 and reads[3].dtype is not torch.bool
        self.flops += attention_flops(rows, keys, bias)
        self._taint(out)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._passes:
            return result
        if any(t.untyped_storage()._cdata in self._tainted for t in tensors_in((args, kwargs))):
            self._taint(result)
            self.flops += scalar_flops(func.overloadpacket.__name__, args, tensors_in(result))
        return result
