"""Scalar operations of ops that are no products: FLOPs an element and a row, each with its derivation.

The unfused graph's arithmetic: add, sub, mul, div, max, neg, exp, sqrt, sin and cos count 1 each; casts, copies,
gathers and masks count 0 (docs/counting.md). A form with `steps` is also a small graph of its own: how code that is
written out runs it, kernel by kernel. A runtime decides whether it is one kernel; its FLOPs are those of the steps.

In the equations of steps {x}, {w}, {v} stand for the op's operands, {b} for what it adds, {y} and {z} for its
results; {all} are the axes of the result, {rest} those without the row, {half} those with half a head. {half_x} is
half of x, {x_as_y} as much of x as goes into y. What a step writes beside {y} is returned with it.
"""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """One kernel of a form: its equation, FLOPs an element of its output (or of `over`), how often it runs.

    `when` names an axis that is 1 where the step runs and 0 where it does not ("": always); `rebinds` says that the
    name of x holds the result from then on.
    """

    equation: str
    flops: int = 0
    over: str = ""
    when: str = ""
    rebinds: bool = False


class Form(NamedTuple):
    """FLOPs an element and a row of n elements: `element` n + `row`; `steps` where code runs several kernels."""

    element: int
    row: int = 0
    steps: tuple[Step, ...] = ()


def written_out(*steps: Step) -> Form:
    """A form whose FLOPs are those of its steps."""

    def flops(axes: str) -> int:
        return sum(s.flops for s in steps if axes in (s.over or s.equation.partition("=")[0]))

    return Form(flops("{all}") + sum(s.flops for s in steps if s.equation.startswith("{y}")), flops("{rest}"), steps)


ADD = Form(1)
MUL = Form(1)

SIGMOID = Form(4)  # 1 / (1 + exp(-x)): neg, exp, add, div
SILU = Form(SIGMOID.element + 1)  # x * sigmoid(x)
GELU = Form(5)  # x / 2 * (1 + erf(x / sqrt 2)): div, erf, add, mul, mul
QUICK_GELU = written_out(  # x * sigmoid(1.702 x)
    Step("_scaled[{all}] = {x}", 1),
    Step("_sigmoid[{all}] = _scaled[{all}]", SIGMOID.element),
    Step("{y} = {x} * _sigmoid[{all}]", 1),
)

SOFTMAX = Form(5, -2)  # a row of n: max n-1, sub n, exp n, sum n-1, div n = 5n - 2
SOFTMAX_IN_FP32 = Form(5, -2, (
    Step("_wide:32[{all}] = {x}"),
    Step("_soft:32[{all}] = _wide:32[{all}]", 5),
    Step("{y} = _soft:32[{all}]", rebinds=True),
))  # fmt: skip
LAYER_NORM = Form(7, 2, (  # mean n, sub n, square n, mean n, eps + sqrt 2, div n, weight n, bias n
    Step("{y} _mean:32[{rest}] _rstd:32[{rest}] = {x} * {w} + {b}", 7),
))  # fmt: skip
LAYER_NORM_2D = written_out(  # as LAYER_NORM, but the vendor's code subtracts the mean twice
    Step("mean[{rest}] = {x}", 1, "{all}"),
    Step("_centred[{all}] = {x} * mean[{rest}]", 1),
    Step("_square[{all}] = _centred[{all}]", 1),
    Step("var[{rest}] = _square[{all}]", 1, "{all}"),
    Step("_centred[{all}] = {x} * mean[{rest}]", 1),
    Step("_eps[{rest}] = var[{rest}]", 1),
    Step("_root[{rest}] = _eps[{rest}]", 1),
    Step("scaled[{all}] = _centred[{all}] * _root[{rest}]", 1),
    Step("_weighted[{all}] = scaled[{all}] * {w}", 1),
    Step("{y} = _weighted[{all}] * {b}", 1),
)
RMS_NORM = written_out(  # square n, mean n, eps + rsqrt 2, mul n, weight n, in fp32 but for the weight
    Step("wide:32[{all}] = {x}"),
    Step("_square:32[{all}] = wide:32[{all}]", 1),
    Step("var:32[{rest}] = _square:32[{all}]", 1, "{all}"),
    Step("_eps:32[{rest}] = var:32[{rest}]", 1),
    Step("_root:32[{rest}] = _eps:32[{rest}]", 1),
    Step("wide:32[{all}] = wide:32[{all}] * _root:32[{rest}]", 1),
    Step("_narrow[{all}] = wide:32[{all}]"),
    Step("{y} = _narrow[{all}] * {w}", 1),
)
ROTATE = Form(7, 0, (  # a pair: (x, y) -> x*cos + rotate_half(x)*sin: 4 mul, 2 add, 1 neg
    Step("_cos[{all}] = {x} * {w}", 1),
    Step("_neg[{half}] = {half_x}", 1),
    Step("_turned[{all}] = {half_x} * _neg[{half}]"),
    Step("_sin[{all}] = _turned[{all}] * {v}", 1),
    Step("{y} = _cos[{all}] * _sin[{all}]", 1),
))  # fmt: skip
ANGLES = Form(
    1, 0, (Step("_pos:32[b s] = pos:64[b s]"), Step("{y} = {x} * _pos:32[b s]", 1))
)  # position times frequency
ROTARY_TABLE = Form(4, 0, (  # cos, sin and the scaling of each: four operations an element of the table
    Step("angles:32[{all}] = {x}"),
    Step("_cos:32[{all}] = angles:32[{all}]", 1),
    Step("wide_cos:32[{all}] = _cos:32[{all}]", 1),
    Step("_sin:32[{all}] = angles:32[{all}]", 1),
    Step("wide_sin:32[{all}] = _sin:32[{all}]", 1),
    Step("{y} = wide_cos:32[{all}]"),
    Step("{z} = wide_sin:32[{all}]"),
))  # fmt: skip
TOP_K = Form(1, 0, (Step("{y} chosen:64[b s k] = {x}", 1, "b s k E"),))  # selecting k of E is k * E comparisons
GATHER = Form(0, 0, (  # tokens in the order of their experts; w:64 are the indices beside the weights
    Step("order:64[b s k] sorted:64[b s k] = w:64[b s k]"),
    Step("_token:64[b s k] = order:64[b s k]"),
    Step("{y} = {x_as_y} * _token:64[b s k]"),
    Step("w:32[b s k] = w:32[b s k] * order:64[b s k]"),
    Step("narrow:32[b s k] = sorted:64[b s k]"),
    Step("counts:32[E] = narrow:32[b s k]"),
    Step("ends:32[E] = counts:32[E]"),
))  # fmt: skip
SCATTER = Form(0, 0, (  # and back, by a permutation that is put together from the order
    Step("inverse:64[b s k] = order:64[b s k] * sorted:64[b s k]"),
    Step("{y} = {x} * inverse:64[b s k]", rebinds=True),
))  # fmt: skip
COMBINE = Form(1, 0, (Step("_sum:32[{all}] = {x}", 1, "b s K d"), Step("{y} = _sum:32[{all}]")))
PARTITION = Form(0, 0, (Step("{y} = {x}"), Step("{y} = {y}", when="split")))  # pad, then permute
MERGE = Form(0, 0, (Step("{x} = {x}", when="split"), Step("{y} = {x_as_y}", when="cropped")))  # permute, then crop

BACKWARD_POINTWISE = 2  # each scalar operation: its derivative times the incoming gradient
