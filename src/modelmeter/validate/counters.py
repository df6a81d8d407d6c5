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

from modelmeter.graph import forms

_FREE = frozenset(
    "view _unsafe_view reshape permute transpose t expand unsqueeze squeeze slice select split unbind "
    "split_with_sizes clone contiguous copy_ _to_copy cat constant_pad_nd index embedding detach alias empty "
    "empty_like new_empty zeros zeros_like ones ones_like arange lift_fresh fill_ mm bmm as_strided unfold flatten "
    "_reshape_alias repeat_interleave stack native_dropout upsample_linear1d _upsample_bicubic2d_aa "
    "upsample_bicubic2d index_select gather scatter masked_fill bitwise_not view_as_complex view_as_real".split()
)


def _rows(form: forms.Form, many: int, width: int) -> int:
    """FLOPs of a norm or softmax of so many rows."""
    return many * (form.element * width + form.row)


_PER_ELEMENT = dict.fromkeys("add sub rsub mul div neg exp sqrt rsqrt sin cos tanh pow maximum addmm baddbmm".split(), 1) | {
    "sigmoid": forms.SIGMOID.element, "silu": forms.SILU.element, "gelu": forms.GELU.element,
}  # fmt: skip
_COMPLEX = {"polar": 4, "scaled": 2, "mul": 6}
"""Of a complex number: cos and sin, each times the length; two products; four products and two sums."""
_RULES: dict[str, Callable[[Any, torch.Tensor], int]] = {
    "convolution": lambda args, out: out.numel() * (args[2] is not None),
    "native_layer_norm": lambda args, out: _rows(forms.LAYER_NORM, out.numel() // prod(args[1]), prod(args[1])),
    "mean": lambda args, out: args[0].numel(),
    "sum": lambda args, out: args[0].numel() - out.numel(),
    "max": lambda args, out: args[0].numel() - out.numel(),
    "topk": lambda args, out: out.numel() * args[0].shape[-1],
    "clamp": lambda args, out: out.numel() * sum(bound is not None for bound in args[1:3]),
    "polar": lambda args, out: out.numel() * _COMPLEX["polar"],
} | dict.fromkeys(
    ("_softmax", "_safe_softmax", "softmax"),
    lambda args, out: _rows(forms.SOFTMAX, out.numel() // out.shape[args[1]], out.shape[args[1]]),
)


def _scalar_flops(name: str, args: Any, out: list[torch.Tensor]) -> int:
    """CUDA-core FLOPs of an operator. Raises NotImplementedError for one that has no rule."""
    if name in _FREE or (name := name.rstrip("_")) in _FREE:
        return 0
    if name == "mul" and out[0].is_complex():
        complexes = [t for t in args if isinstance(t, torch.Tensor) and t.is_complex()]
        return out[0].numel() * _COMPLEX["mul" if len(complexes) > 1 else "scaled"]
    if name in _PER_ELEMENT:
        return _PER_ELEMENT[name] * out[0].numel()
    if name in _RULES:
        return _RULES[name](args, out[0])
    raise NotImplementedError(f"no counting rule for operator {name!r}")


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
    """Runs scaled_dot_product_attention as one kernel that only allocates its result."""

    def __init__(self, seen: Callable[[list[torch.Tensor], torch.Tensor], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
        reads = [given[name] for name in ("query", "key", "value", "attn_mask") if given.get(name) is not None]
        out = reads[0].new_empty((*reads[0].shape[:-1], reads[2].shape[-1]))
        self.seen(reads, out)
        return out


class Watch(TorchDispatchMode):
    """Sees every operator, and attention as one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = _AttentionMode(self.attention)

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        """Called for each attention kernel with what it reads and makes."""
        raise NotImplementedError

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

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        self.bytes += _bytes([*reads, out])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self._KERNELS:
            self.bytes += _bytes(tensors_in((args, kwargs)) + tensors_in(result))
        return result


class ScalarOperations(OperandBytes):
    """Counts, beside them, CUDA-core FLOPs of the unfused graph by the convention of docs/counting.md.

    Only arithmetic on data that depends on the inputs counts: what depends on weights and shapes
    alone (interpolated position tables, index arithmetic) is the same for every call.
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
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
        self.flops += _rows(forms.SOFTMAX, rows, keys) + rows * keys * (2 if bias else 1)
        self._taint(out)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if any(t.untyped_storage()._cdata in self._tainted for t in tensors_in((args, kwargs))):
            self._taint(result)
            self.flops += _scalar_flops(func.overloadpacket.__name__, args, tensors_in(result))
        return result
