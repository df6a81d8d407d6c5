"""Scalar operations of ops that are no products: FLOPs an element and a row, each with its derivation.

The unfused graph's arithmetic: add, sub, mul, div, max, neg, exp, sqrt, sin and cos count 1 each; casts, copies,
gathers and masks count 0 (docs/counting.md). A form with `steps` is also a small graph of its own: how code that is
written out runs it, kernel by kernel. A runtime decides whether it is one kernel; its FLOPs are those of the steps.

A step is FLOPs an element and an equation, whose tensors have the axes of the result where it names none. x, w and v
stand for the op's operands, y and z for its results; [rest] are the axes without the row, [half] those with half a
head, [turned] and [passed] those with the part of a head that is rotated and with the other, [all] all of them. `if
axis`: it runs where this axis is 1 (else 0). `as x`: the name of x holds the result from then on. What is written
beside y is returned with it.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Step(NamedTuple):
    """One kernel of a form: FLOPs an element, equation, the axis that says whether it runs, what its result rebinds."""

    flops: int
    equation: str
    when: str
    rebinds: str


class Form(NamedTuple):
    """FLOPs of a row of n elements: `element` n + `row`; `kernels` is the text of steps where code runs several."""

    element: int
    row: int = 0
    kernels: str = ""

    @property
    def steps(self) -> list[Step]:
        """The kernels in order."""
        parts = re.findall(r"(?:(\d) )?(\w[^;\n]*? = [^;\n]*?)(?: if (\w+))?(?: as (x))?(?:;|$)", self.kernels, re.M)
        return [Step(int(flops or 0), *others) for flops, *others in parts]


ADD, MUL, EXP = Form(1), Form(1), Form(1)
SUB_EXP = Form(2, 0, "1 _less = x; 1 y = _less")  # exp(x - y): the decay from one position to another
MASKED_SUB_EXP = Form(2, 0, "1 _less = x; _masked = _less; 1 y = _masked")  # of all pairs, those to come masked
SIGMOID = Form(4)  # 1 / (1 + exp(-x)): neg, exp, add, div
SILU = Form(SIGMOID.element + 1)  # x * sigmoid(x)
GELU = Form(5)  # x / 2 * (1 + erf(x / sqrt 2)): div, erf, add, mul, mul
GELU_NEW = Form(8)  # x / 2 * (1 + tanh(c (x + k x^3))), written out: pow, mul, add, mul, tanh, add, mul, mul
QUICK_GELU = Form(6, 0, "1 _scaled = x; 4 _sigmoid = _scaled; 1 y = x * _sigmoid")  # x * sigmoid(1.702 x)
ACTIVATIONS = {
    "silu": SILU, "swish": SILU, "gelu": GELU, "gelu_pytorch_tanh": GELU, "gelu_new": GELU_NEW,
    "quick_gelu": QUICK_GELU, "relu": Form(1), "sigmoid": SIGMOID,
}  # fmt: skip
"""Activations by the names of transformers; GELU is one operator in both of its forms."""
CLAMPED = Form(11)  # min(g, c) 1, min and max of u 2, g * sigmoid(a g) 1 + 4 + 1, (u + 1) * ... 2
CAP = Form(3)  # c * tanh(x / c): div, tanh, mul
SOFTPLUS = Form(3)  # log(1 + exp(x)): exp, add, log
LOG_DECAY = Form(
    SOFTPLUS.element + 2, 0, "_wide:32 = x; 1 _sum:32 = _wide:32 * w; 3 _soft:32 = _sum:32; 1 y = _soft:32 * v"
)
"""-exp(A) * softplus(x + dt): add, softplus, mul; no input is in exp(A)."""

SOFTMAX = Form(5, -2)  # a row of n: max n-1, sub n, exp n, sum n-1, div n = 5n - 2
SOFTMAX_IN_FP32 = Form(5, -2, "_wide:32 = x; 5 _soft:32 = _wide:32; y = _soft:32 as x")
NARROW_SOFTMAX = Form(5, -2, "5 y = x as x")  # in the format of the scores, whose name then holds the weights
SINK_SOFTMAX = Form(7, 4)
"""A row of n and a score beside it: max n, sub n + 1, then a softmax of n + 1, 5n + 3; nothing is read of that one."""
LAYER_NORM = Form(7, 2, "7 y _mean:32[rest] _rstd:32[rest] = x * w + v")
"""Mean n, sub n, square n, mean n, eps + sqrt 2, div n, weight n, bias n."""
LAYER_NORM_2D = Form(8, 2, """
    1 mean[rest] = x; 1 _centred = x * mean[rest]; 1 _square = _centred; 1 var[rest] = _square
    1 _centred = x * mean[rest]; 1 _eps[rest] = var[rest]; 1 _root[rest] = _eps[rest]
    1 scaled = _centred * _root[rest]; 1 _weighted = scaled * w; 1 y = _weighted * v
""")  # fmt: skip
"""As LAYER_NORM, but the vendor's code subtracts the mean twice."""
RMS_NORM = Form(4, 2, """
    wide:32 = x; 1 _square:32 = wide:32; 1 var:32[rest] = _square:32; 1 _eps:32[rest] = var:32[rest]
    1 _root:32[rest] = _eps:32[rest]; 1 wide:32 = wide:32 * _root:32[rest]; _narrow = wide:32; 1 y = _narrow * w
""")  # fmt: skip
"""Square n, mean n, eps + rsqrt 2, mul n, weight n, in fp32 but for the weight."""
L2_NORM = Form(3, 1, """
    1 _square:32 = x; 1 _sum:32[rest] = _square:32; 1 _eps:32[rest] = _sum:32[rest]; _root:32[rest] = _eps:32[rest]
    1 y = x * _root:32[rest]
""")  # fmt: skip
"""x / sqrt(sum(x^2) + eps), a row of n: square n, sum n-1, eps + rsqrt 2, mul n = 3n + 1."""
WIDE_RMS_NORM = Form(4, 2, """
    wide:32 = x; 1 _square:32 = wide:32; 1 _var:32[rest] = _square:32; 1 _eps:32[rest] = _var:32[rest]
    1 _root:32[rest] = _eps:32[rest]; 1 _out:32 = wide:32 * _root:32[rest]; 1 out:32 = _out:32 * w; y = out:32
""")  # fmt: skip
"""As RMS_NORM, in fp32 to the end."""
CENTERED_NORM = Form(7, 2, """
    wide:32 = x; 1 mean:32[rest] = wide:32; 1 _less:32 = wide:32 * mean:32[rest]; 1 _square:32 = _less:32
    1 var:32[rest] = _square:32; 1 _less:32 = wide:32 * mean:32[rest]; 1 _eps:32[rest] = var:32[rest]
    1 _root:32[rest] = _eps:32[rest]; 1 wide:32 = _less:32 * _root:32[rest]; 1 wide:32 = wide:32 * w; y = wide:32
""")  # fmt: skip
"""Mean n, sub n, square n, mean n, sub n, eps + rsqrt 2, mul n, weight n."""
ROTATE = Form(7, 0, """
    1 _cos = x * w; 1 _neg[half] = x[half]; _turned = x[half] * _neg[half]; 1 _sin = _turned * v; 1 y = _cos * _sin
""")  # fmt: skip
"""A pair: (x, y) -> x*cos + rotate_half(x)*sin: 4 mul, 2 add, 1 neg."""
ROTATE_WIDE = Form(7, 0, """
    _wide:32 = x; 1 _cos:32 = _wide:32 * _spread_cos:32[b s e]; 1 _neg[half] = x[half]; _turned = x[half] * _neg[half]
    _other:32 = _turned; 1 _sin:32 = _other:32 * _spread_sin:32[b s e]; 1 _sum:32 = _cos:32 * _sin:32; y = _sum:32
""")  # fmt: skip
"""As ROTATE, in fp32, by tables of which each column stands twice, side by side."""
SPREAD_AND_ROTATE = ROTATE_WIDE._replace(
    kernels=f"_spread_cos:32[b s e] = w[b s H]; _spread_sin:32[b s e] = v[b s H]; {ROTATE_WIDE.kernels}"
)
"""The same, which puts these tables together first, of those that were made once."""
ROTATE_PART = Form(7, 0, """
    1 _cos[turned] = x[turned] * w; 1 _neg[half] = x[half]; _half[turned] = x[half] * _neg[half]
    1 _sin[turned] = _half[turned] * v; 1 _both[turned] = _cos[turned] * _sin[turned]; y = x[passed] * _both[turned]
""")  # fmt: skip
"""As ROTATE, of a part of each head; the rest is put back beside it."""
ROTATE_DIRECT = Form(6, 0, """
    1 _a[half] = x[half] * w; 1 _b[half] = x[half] * v; 1 first[half] = _a[half] * _b[half]
    1 _c[half] = x[half] * w; 1 _d[half] = x[half] * v; 1 _second[half] = _c[half] * _d[half]
    y = first[half] * _second[half]
""")  # fmt: skip
"""A pair: (x, y) -> (x cos - y sin, y cos + x sin): 4 mul, 2 add."""
ANGLES = Form(1, 0, "_pos:32[b s] = pos:64[b s]; 1 y = x * _pos:32[b s]")  # position times frequency
ALL_ANGLES = ANGLES._replace(kernels=ANGLES.kernels.replace("[b s]", "[coordinates b s]"))  # of each coordinate
ROTARY_TABLE = Form(4, 0, """
    angles:32 = x; 1 _cos:32 = angles:32; 1 wide_cos:32 = _cos:32; 1 _sin:32 = angles:32; 1 wide_sin:32 = _sin:32
    y = wide_cos:32; z = wide_sin:32
""")  # fmt: skip
"""Cos, sin and the scaling of each: four operations an element of the table."""
WIDE_TABLE = Form(4, 0, "angles:32 = x; 1 _cos:32 = angles:32; 1 y = _cos:32; 1 _sin:32 = angles:32; 1 z = _sin:32")
SECTIONED_TABLE = Form(6, 0, """
    1 _cos:32[coordinates b s H] = x; 1 wide_cos:32[coordinates b s H] = _cos:32[coordinates b s H]
    1 _sin:32[coordinates b s H] = x; 1 wide_sin:32[coordinates b s H] = _sin:32[coordinates b s H]
    _chosen:32[b s H] = wide_sin:32[b s H]; wide_sin:32[b s e] = _chosen:32[b s H]
    _chosen:32[b s H] = wide_cos:32[b s H]; wide_cos:32[b s e] = _chosen:32[b s H]
    y = wide_cos:32[b s e]; z = wide_sin:32[b s e]
""")  # fmt: skip
"""Cos, sin and the scaling of each for each of three coordinates of a pair, which keeps one: 12 for two elements."""
POLAR_TABLE = Form(6, 0, "_ones:64 = x; 4 _turns:64 = _ones:64 * x; 2 y z = _turns:64")
"""A complex number of length one for each pair: cos, sin, each times the length; then both are scaled."""

TOP_K = Form(1, 0, "1 y chosen:64 = x")  # selecting k of E is k * E comparisons
GATHER = Form(0, 0, """
    order:64[b s k] sorted:64[b s k] = w:64[b s k]; _token:64[b s k] = order:64[b s k]; y = x[all] * _token:64[b s k]
    w:32[b s k] = w:32[b s k] * order:64[b s k]; narrow:32[b s k] = sorted:64[b s k]
    counts:32[E] = narrow:32[b s k]; ends:32[E] = counts:32[E]
""")  # fmt: skip
"""Tokens in the order of their experts; w:64 are the indices beside the weights."""
NARROW_GATHER = GATHER._replace(kernels=GATHER.kernels.replace(" w:32", " w"))  # weights in the format of activations
SCATTER = Form(0, 0, "inverse:64[b s k] = order:64[b s k] * sorted:64[b s k]; y = x * inverse:64[b s k] as x")
"""And back, by a permutation that is put together from the order."""
COMBINE = Form(1, 0, "1 _sum:32 = x; y = _sum:32")
NARROW_COMBINE = Form(1, 0, "1 y = x")
GATHERS, COMBINES = (GATHER, NARROW_GATHER), (COMBINE, NARROW_COMBINE)
PARTITION = Form(0, 0, "y = x; y = y if split")  # pad, then permute
MERGE = Form(0, 0, "x = x if split; y = x[all] if cropped")  # permute, then crop

BACKWARD_POINTWISE = 2  # each scalar operation: its derivative times the incoming gradient
