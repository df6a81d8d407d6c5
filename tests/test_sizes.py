"""One code for ints, arrays and expressions."""

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import CASES, IDS, RUNTIMES, all_layers, every_example, examples
from modelmeter.errors import InputError
from modelmeter.layers import MLP
from modelmeter.programs.cost import COUNTS
from modelmeter.sizes import (
    as_size,
    ceil_div,
    evaluated,
    expected_distinct,
    floor_div,
    maximum,
    minimum,
    place_in,
    ratio,
    symbol,
)

SYMBOLIC = every_example(lambda name, value: symbol(name))
VALUES: dict[str, int] = {}
examples(lambda name, value: VALUES.setdefault(name, value))
STEPS = (0, 1, 7)
ONE_SIZE = ("TwinTower",)
"""Layers whose two parts have as many features at one size only."""
RAGGED = ("ImageAttention", "VisionAttention", "NavitBlock", "NavitTower", "MergeProjector", "Projected")
"""Layers with means over ragged windows or squares: fractions, which arrays hold rounded."""
small = st.integers(1, 9)


def test_every_layer_of_the_package_has_an_example():
    assert set(all_layers()) == set(examples())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("causal", ("full", "exact"))
@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_int_equals_float_array_equals_symbol_for_every_layer(runtime, causal, index):
    (name, layer, sizes), (_, symbolic, _) = CASES[index], SYMBOLIC[index]
    steps = (0,) if name in ONE_SIZE else STEPS
    many = layer.cost(
        runtime=runtime, causal=causal, **{a: np.array([v + float(s) for s in steps]) for a, v in sizes.items()}
    )
    formula = symbolic.program(runtime=runtime, causal=causal).costs[""]
    for place, step in enumerate(steps):
        point = {axis: v + step for axis, v in sizes.items()}
        one = layer.cost(runtime=runtime, causal=causal, **point)
        at_formula = evaluated([getattr(formula, count) for count in COUNTS], VALUES | point)
        for count, from_formula in zip(COUNTS, at_formula, strict=True):
            exact, at_array = getattr(one, count), np.broadcast_to(getattr(many, count), len(steps))[place]
            if name in RAGGED and isinstance(exact, (int, Fraction)):
                assert exact == from_formula and at_array == pytest.approx(float(exact), rel=1e-12), (
                    name,
                    count,
                    point,
                )
            elif isinstance(exact, (int, Fraction)):
                assert exact == at_array == from_formula, (name, count, point)
            else:  # expected distinct experts: a float by nature
                assert exact == pytest.approx(at_array, rel=1e-12), (name, count, point)
                assert exact == pytest.approx(from_formula, rel=1e-12), (name, count, point)


@pytest.mark.parametrize(("experts", "active", "tokens"), [(3, 1, 3), (4, 2, 3), (5, 3, 2), (4, 4, 2), (6, 2, 1)])
def test_expected_distinct_experts_is_the_mean_over_all_routings(experts, active, tokens):
    choices = list(combinations(range(experts), active))
    routings = list(product(choices, repeat=tokens))
    mean = Fraction(sum(len(set().union(*routing)) for routing in routings), len(routings))
    assert expected_distinct(experts, active, tokens) == pytest.approx(float(mean), rel=1e-14)


@given(st.integers(1, 10**6), st.integers(1, 10**3))
def test_divisions_are_exact_on_ints_and_arrays(a, b):
    array = np.array([float(a)])
    assert ceil_div(a, b) == math.ceil(Fraction(a, b)) == ceil_div(array, b)[0]
    assert floor_div(a, b) == a // b == floor_div(array, b)[0]
    assert place_in(a, b) == (a - 1) % b + 1 == place_in(array, b)[0]
    assert ratio(a, b) == Fraction(a, b)


FUNCTIONS = (ceil_div, floor_div, place_in, minimum, maximum, ratio)


@given(small, small, small, st.sampled_from(FUNCTIONS), st.sampled_from(FUNCTIONS))
def test_an_expression_is_what_its_numbers_are(x, y, c, f, g):
    """Every way of putting functions, products and sums together."""

    def value(a, b):
        return 3 * a * b * f(a + b, c) - g(2 * a, b + c) * a + f(g(a, c) * c + 1, b) * Fraction(1, 2) + b**2

    a, b = symbol("a"), symbol("b")
    (found,) = evaluated([value(a, b)], {"a": x, "b": y})
    assert found == value(x, y)


@given(small, small, small)
def test_algebra_of_expressions_is_that_of_polynomials_and_equal_ones_are_one_object(x, y, z):
    a, b, c = map(symbol, "abc")
    assert a * (b + c) is a * b + c * a and (a + b) * (a - b) is a * a - b**2
    assert a + b - b is a and a * 0 == 0 and (a - a) == 0 and type(a - a) is int
    assert minimum(a, b) is minimum(b, a) and ratio(a * b * 6, b * 3) is a * 2 and (a * b) / a is b
    assert evaluated([(a + b) ** 2 / 4 - c * Fraction(1, 4)], {"a": x, "b": y, "c": z}) == (
        ratio((x + y) ** 2 - z, 4),
    )  # fmt: skip


def test_an_expression_has_no_truth():
    with pytest.raises(TypeError, match="sizes must not decide"):
        bool(symbol("a"))


@pytest.mark.parametrize("bad", [0, -3, 1.5, True, "7", None, float("nan"), [1, 0], np.array([2.0, 0.5]), [], {}])
def test_a_size_is_a_whole_number_of_at_least_one(bad):
    with pytest.raises(InputError, match="batch must be a whole number"):
        as_size("batch", bad)


def test_arrays_may_be_hyper_parameters():
    widths = np.array([3.0, 8.0])
    many = MLP(4, widths).cost(b=2, s=np.array([5.0, 1.0])).as_dict()
    for place, (f, s) in enumerate(((3, 5), (8, 1))):
        for count, exact in MLP(4, f).cost(b=2, s=s).as_dict().items():
            assert np.broadcast_to(many[count], 2)[place] == pytest.approx(exact, rel=1e-15), count
