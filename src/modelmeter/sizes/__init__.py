"""The only code that knows that an int, an array and an expression differ."""

from modelmeter.sizes.expressions import Expr, added, symbol
from modelmeter.sizes.functions import (
    FUNCTIONS,
    Size,
    anywhere,
    as_size,
    below,
    ceil_div,
    differ,
    expected_distinct,
    floor_div,
    maximum,
    minimum,
    never_negative,
    place_in,
    ratio,
    whole,
)
from modelmeter.sizes.source import Evaluator, evaluated
from modelmeter.sizes.sums import largest, substituted, summed

__all__ = [
    "FUNCTIONS", "Evaluator", "Expr", "Size", "added", "anywhere", "as_size", "below", "ceil_div", "differ",
    "evaluated", "expected_distinct", "floor_div", "largest", "maximum", "minimum", "never_negative", "place_in",
    "ratio", "substituted", "summed", "symbol", "whole",
]  # fmt: skip
