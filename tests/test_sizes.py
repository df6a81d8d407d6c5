"""One code for ints, arrays and symbols."""

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from examples import all_layers, every_example, examples
from modelmeter.cost import COUNTS
from modelmeter.errors import InputError
from modelmeter.memory import EXECUTIONS
from modelmeter.sizes import FUNCTIONS, as_size, ceil_div, expected_distinct, ratio

PAIRS = list(zip(every_example(), every_example(lambda name, value: sympy.Symbol(name, positive=True)), strict=True))


def test_every_layer_of_the_package_has_an_example():
    assert set(all_layers()) == set(examples())


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("causal", ("full", "exact"))
def test_int_equals_float_array_equals_symbol_for_every_layer(execution, causal):
    values = {}
    examples(lambda name, value: values.setdefault(name, value))
    for (name, layer, sizes), (_, symbolic, _) in PAIRS:
        grown = {axis: np.array([v, v + 1.0, v + 7.0]) for axis, v in sizes.items()}
        many = layer.cost(execution=execution, causal=causal, **grown)
        symbols = {axis: sympy.Symbol(f"{axis}_", positive=True) for axis in sizes}
        formula = symbolic.cost(execution=execution, causal=causal, **symbols)
        for index, step in enumerate((0, 1, 7)):
            point = {axis: v + step for axis, v in sizes.items()}
            one = layer.cost(execution=execution, causal=causal, **point)
            scope = dict(FUNCTIONS) | values | {f"{axis}_": v for axis, v in point.items()}
            for count in COUNTS:
                exact = getattr(one, count)
                at_array = np.broadcast_to(getattr(many, count), 3)[index]
                at_formula = eval(str(getattr(formula, count)), scope)
                if isinstance(exact, int):
                    assert exact == at_array == at_formula, (name, count, point)
                else:  # expected distinct experts: a float by nature
                    assert exact == pytest.approx(at_array, rel=1e-12), (name, count, point)
                    assert exact == pytest.approx(at_formula, rel=1e-12), (name, count, point)


@pytest.mark.parametrize(("experts", "active", "tokens"), [(3, 1, 3), (4, 2, 3), (5, 3, 2), (4, 4, 2), (6, 2, 1)])
def test_expected_distinct_experts_is_the_mean_over_all_routings(experts, active, tokens):
    choices = list(combinations(range(experts), active))
    routings = list(product(choices, repeat=tokens))
    mean = Fraction(sum(len(set().union(*routing)) for routing in routings), len(routings))
    assert expected_distinct(experts, active, tokens) == pytest.approx(float(mean), rel=1e-14)


@given(st.integers(1, 10**6), st.integers(1, 10**3))
def test_ceil_div_and_ratio_are_exact(a, b):
    assert ceil_div(a, b) == math.ceil(Fraction(a, b)) == ceil_div(np.array([float(a)]), b)[0]
    assert ratio(a, b) == Fraction(a, b)


@pytest.mark.parametrize("bad", [0, -3, 1.5, True, "7", None, float("nan"), [1, 0], np.array([2.0, 0.5]), [], {}])
def test_a_size_is_a_whole_number_of_at_least_one(bad):
    with pytest.raises(InputError, match="batch must be a whole number"):
        as_size("batch", bad)
