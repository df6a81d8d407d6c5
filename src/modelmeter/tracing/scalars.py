"""Scalar operations of torch's operators by the convention of docs/counting.md: FLOPs of CUDA cores.

One table for real and for symbolic sizes: a rule multiplies and adds what a tensor says of itself. An operator without
a rule is an error. Shared by the counters of `validate` and by tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from modelmeter.graph import forms

FREE = frozenset(
    "view _unsafe_view reshape permute transpose t expand unsqueeze squeeze slice select split unbind "
    "split_with_sizes clone contiguous copy_ _to_copy cat constant_pad_nd index embedding detach alias empty "
    "empty_like new_empty zeros zeros_like ones ones_like arange lift_fresh fill_ mm bmm as_strided unfold flatten "
    "_reshape_alias repeat_interleave stack native_dropout upsample_linear1d _upsample_bicubic2d_aa "
    "upsample_bicubic2d index_select gather scatter masked_fill bitwise_not view_as_complex view_as_real "
    "where eq ne lt le gt ge logical_and logical_or logical_not bitwise_and bitwise_or full full_like new_zeros "
    "new_ones new_full scalar_tensor tril triu diagonal flip roll pixel_shuffle pixel_unshuffle repeat "
    "sort argsort bucketize one_hot index_put index_add index_copy scatter_add isin any all upsample_bilinear2d "
    "upsample_nearest2d _upsample_bilinear2d_aa im2col reflection_pad1d replication_pad2d reflection_pad2d isinf isnan "
    "empty_strided eye linspace real imag expand_as new_empty_strided randn rand randint bernoulli uniform normal "
    "argmax argmin slice_scatter select_scatter _assert_scalar _local_scalar_dense lift zero bitwise_xor numpy_T "
    "max_pool2d_with_indices masked_scatter searchsorted _assert_async device nonzero "
    "bincount histc unique2 _unique2".split()
)
"""What moves, selects or makes elements and computes none."""
_PER_ELEMENT = dict.fromkeys(
    "add sub rsub mul div neg exp sqrt rsqrt sin cos tanh pow maximum addmm baddbmm minimum relu abs log log1p log2 "
    "exp2 expm1 reciprocal erf sign round floor ceil square remainder fmod floor_divide cumsum cumprod clamp_min "
    "clamp_max bitwise_left_shift bitwise_right_shift __rshift__ __lshift__ __and__ __or__ threshold hardtanh sgn "
    "leaky_relu".split(),
    1,
) | {
    "sigmoid": forms.SIGMOID.element, "silu": forms.SILU.element, "gelu": forms.GELU.element, "hardsigmoid": 4,
    "hardswish": 5, "elu": 3, "softplus": 3, "log_sigmoid_forward": 3, "addcmul": 2, "addcdiv": 2, "lerp": 3,
    "logit": 3, "mish": 5, "logaddexp": 5,
}  # fmt: skip
_COMPLEX = {"polar": 4, "scaled": 2, "mul": 6}
"""Of a complex number: cos and sin, each times the length; two products; four products and two sums."""


def rows(form: forms.Form, many: Any, width: Any) -> Any:
    """FLOPs of a norm or softmax of so many rows."""
    return many * (form.element * width + form.row)


def _row(args: Sequence[Any], out: Any) -> Any:
    """FLOPs of a softmax along the axis that its second argument names."""
    shape = list(out.shape)
    width = shape.pop(args[1])
    return rows(forms.SOFTMAX, prod(shape), width)


def _norm(form: forms.Form) -> Callable[[Sequence[Any], Any], Any]:
    """FLOPs of a norm over the last axes, those that its second argument has."""
    return lambda args, out: rows(form, prod(out.shape[: len(out.shape) - len(args[1])]), prod(args[1]))


def _group_norm(args: Sequence[Any], out: Any) -> Any:
    """Groups of an image are rows; weight and bias cost one operation an element each."""
    images, channels, pixels, groups = args[3:7]
    return rows(forms.LAYER_NORM, images * groups, channels // groups * pixels)


_OF_ALL = {"mean": 1, "linalg_vector_norm": 2, "norm": 2, "var": 4, "var_mean": 4, "std": 4, "logsumexp": 4,
           "_adaptive_avg_pool2d": 1}  # fmt: skip
"""Reductions by FLOPs an element of what is reduced."""
_RULES: dict[str, Callable[[Any, Any], Any]] = {
    "convolution": lambda args, out: out.numel() * (args[2] is not None),
    "native_layer_norm": _norm(forms.LAYER_NORM), "_fused_rms_norm": _norm(forms.RMS_NORM),
    "native_group_norm": _group_norm, "_log_softmax": _row, "complex": lambda args, out: 0,
    "linalg_solve_triangular": lambda args, out: out.numel() * out.shape[-2],
    "topk": lambda args, out: out.numel() * args[0].shape[-1],
    "clamp": lambda args, out: out.numel() * sum(bound is not None for bound in args[1:3]),
    "polar": lambda args, out: out.numel() * _COMPLEX["polar"],
    "max_pool2d": lambda args, out: out.numel() * (prod(args[1]) - 1),
} | dict.fromkeys(("_softmax", "_safe_softmax", "softmax"), _row) | dict.fromkeys(
    ("sum", "prod", "max", "min", "amax", "amin"), lambda args, out: args[0].numel() - out.numel(),
) | dict.fromkeys(
    ("native_batch_norm", "_native_batch_norm_legit_no_training"), lambda args, out: 4 * out.numel(),
) | dict.fromkeys(("avg_pool1d", "avg_pool2d"), lambda args, out: out.numel() * prod(args[1]))  # fmt: skip


def scalar_flops(name: str, args: Sequence[Any], out: Sequence[Any]) -> Any:
    """CUDA-core FLOPs of an operator on these arguments. Raises NotImplementedError for one that has no rule."""
    if name in FREE or (name := name.rstrip("_") if name[:2] != "__" else name) in FREE:
        return 0
    if name == "mul" and out[0].is_complex():
        complexes = [t for t in args if hasattr(t, "is_complex") and t.is_complex()]
        return out[0].numel() * _COMPLEX["mul" if len(complexes) > 1 else "scaled"]
    if name in _PER_ELEMENT:
        return _PER_ELEMENT[name] * out[0].numel()
    if name in _OF_ALL:
        return _OF_ALL[name] * args[0].numel()
    if name in _RULES:
        return _RULES[name](args, out[0])
    raise NotImplementedError(f"no counting rule for operator {name!r}")


def attention_flops(queries: Any, keys: Any, biased: bool) -> Any:
    """CUDA-core FLOPs of an attention kernel: scale, bias and softmax of so many rows, each of so many keys."""
    return rows(forms.SOFTMAX, queries, keys) + queries * keys * (2 if biased else 1)
