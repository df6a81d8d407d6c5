"""The constants of scalar operations, counted by running the definitions on numbers that count."""

import math

import pytest

from modelmeter import layers as mm
from modelmeter.graph import forms


class Counting:
    """A float that counts the arithmetic done with it."""

    done = 0

    def __init__(self, value):
        self.value = value

    def _do(self, value):
        Counting.done += 1
        return Counting(value)

    def __add__(self, other):
        return self._do(self.value + getattr(other, "value", other))

    def __sub__(self, other):
        return self._do(self.value - getattr(other, "value", other))

    def __mul__(self, other):
        return self._do(self.value * getattr(other, "value", other))

    def __truediv__(self, other):
        return self._do(self.value / getattr(other, "value", other))

    def __rtruediv__(self, other):
        return self._do(other / self.value)

    def __neg__(self):
        return self._do(-self.value)

    def apply(self, function):
        return self._do(function(self.value))

    def larger(self, other):
        return self._do(max(self.value, other.value))


def cost(function, *arguments):
    Counting.done = 0
    function(*arguments)
    return Counting.done


def row(n):
    return [Counting(0.1 * i + 0.3) for i in range(n)]


def total(values):
    result = values[0]
    for value in values[1:]:
        result = result + value
    return result


def sigmoid(x):
    return 1.0 / ((-x).apply(math.exp) + 1.0)


def mean(values):
    return total(values) / len(values)


def layer_norm(x, subtract_twice=False):
    centre = mean(x)
    centred = [v - centre for v in x]
    root = (mean([v * v for v in centred]) + 1e-6).apply(math.sqrt)
    if subtract_twice:
        centred = [v - centre for v in x]
    return [v / root * 1.0 + 0.0 for v in centred]


def rms_norm(x):
    root = (mean([v * v for v in x]) + 1e-6).apply(math.sqrt)
    return [v / root * 1.0 for v in x]


def softmax(x):
    top = x[0]
    for value in x[1:]:
        top = top.larger(value)
    powers = [(v - top).apply(math.exp) for v in x]
    below = total(powers)
    return [p / below for p in powers]


def rotate(x, y, cos, sin):
    return x * cos + (-y) * sin, y * cos + x * sin


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_norms_and_softmax(n):
    for function, form in (
        (layer_norm, forms.LAYER_NORM),
        (lambda x: layer_norm(x, True), forms.LAYER_NORM_2D),
        (rms_norm, forms.RMS_NORM),
        (softmax, forms.SOFTMAX),
    ):
        assert cost(function, row(n)) == form.element * n + form.row
    assert mm.LayerNorm(n).forward_cuda_core_flops(b=2, s=3) == 6 * cost(layer_norm, row(n))
    assert mm.DeepseekV2RMSNorm(n).forward_cuda_core_flops(b=2, s=3) == 6 * cost(rms_norm, row(n))
    two = cost(lambda x: layer_norm(x, True), row(n))
    assert mm.LayerNorm2d(n).forward_cuda_core_flops(b=2, u=3, v=4) == 24 * two


def test_activations_and_rotary():
    x = Counting(0.3)
    for function, form in (
        (sigmoid, forms.SIGMOID),
        (lambda v: v * sigmoid(v), forms.SILU),
        (lambda v: v * sigmoid(v * 1.702), forms.QUICK_GELU),
        (lambda v: (v / 2) * ((v / math.sqrt(2)).apply(math.erf) + 1), forms.GELU),
        (lambda a: (a.apply(math.cos) * 1.0, a.apply(math.sin) * 1.0), forms.ROTARY_TABLE),
    ):
        assert cost(function, x) == form.element
    assert cost(rotate, x, x, x, x) == forms.ROTATE.element  # of a pair
