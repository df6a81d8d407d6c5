"""Scalar operations per element, by the stated convention, each with its derivation.

The unfused graph's arithmetic: add, sub, mul, div, max, neg, exp, sqrt, sin and cos count 1 each;
casts, copies, gathers and masks count 0. What is counted is told in docs/counting.md.
"""

from __future__ import annotations

ADD = 1  # one addition
MUL = 1  # one multiplication

SIGMOID = 4  # 1 / (1 + exp(-x)): neg, exp, add, div
SILU = SIGMOID + MUL  # x * sigmoid(x)
GELU = 5  # x / 2 * (1 + erf(x / sqrt 2)): div, erf, add, mul, mul
QUICK_GELU = MUL + SIGMOID + MUL  # x * sigmoid(1.702 x)

SOFTMAX = (5, -2)  # a row of n: max n-1, sub n, exp n, sum n-1, div n = 5n - 2
LAYER_NORM = (7, 2)  # mean n, sub n, square n, mean n, eps + sqrt 2, div n, weight n, bias n
LAYER_NORM_2D = (8, 2)  # as LAYER_NORM, but the vendor's code subtracts the mean twice
RMS_NORM = (4, 2)  # square n, mean n, eps + sqrt 2, div n, weight n

ROTATE_PAIR = 7  # (x, y) -> (x cos - y sin, y cos + x sin) as x*cos + rotate_half(x)*sin: 4 mul, 2 add, 1 neg
ROTARY_TABLE = 4  # cos, sin and the scaling of each: four operations an element of the table

BACKWARD_POINTWISE = 2  # each scalar operation: its derivative times the incoming gradient
TOP_K = 1  # a comparison: selecting k of E costs k * E of them
