"""The LaTeX of docs/formulas.md, read back and evaluated, is what the code computes."""

import math
import random
import re
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest
from latex2mathml.converter import convert

from modelmeter.layers import BaseLayer
from modelmeter.layers.base import walk
from modelmeter.report.formulas import QUANTITIES, forms, latex
from modelmeter.sizes import symbol
from modelmeter.sizes.functions import BUILDERS

PAGE = Path("docs/formulas.md").read_text()
ROWS = [
    (section.splitlines()[0], label, text)
    for section in PAGE.split("\n## ")[1:]
    for label, text in re.findall(r"^\| ([^|]+) \| \$([^|]+)\$ \|$", section, flags=re.MULTILINE)
]
NAMES = set()
FORMS = forms(lambda name: NAMES.add(name) or symbol(name))
SHARED = {"DeepseekV2MoE": "shared", "MergedExpertsMoE": "shared", "Mixture": "shared"}
TOKEN = re.compile(
    r"\\(?:left|right)[()]|\\(?:left|right)\\[lr](?:ceil|floor)|\\mathrm\{\w+\}|\\frac|\\m(?:in|ax)|\d+|[A-Za-z]|[-+,^{}]"
)
ROUNDED = {r"\left\lceil": (r"\right\rceil", math.ceil), r"\left\lfloor": (r"\right\rfloor", math.floor)}


class Reader:
    """A reader of the LaTeX that the page uses: sums, juxtaposed factors, powers, fractions, brackets."""

    def __init__(self, text, sizes):
        self.tokens, self.sizes = TOKEN.findall(text), sizes
        assert "".join(self.tokens) == text.replace(" ", ""), text

    def take(self, *expected):
        token = self.tokens.pop(0)
        assert not expected or token in expected, (token, expected)
        return token

    def next_is(self, *tokens):
        return bool(self.tokens) and self.tokens[0] in tokens

    def sum(self):
        total = -self.product() if self.next_is("-") and self.take() else self.product()
        while self.next_is("+", "-"):
            total += self.product() if self.take() == "+" else -self.product()
        return total

    def product(self):
        value = self.power()
        while self.tokens and not self.next_is("+", "-", ",", "}", r"\right)", r"\right\rceil", r"\right\rfloor"):
            value *= self.power()
        return value

    def power(self):
        base = self.atom()
        return base ** self.group() if self.next_is("^") and self.take() else base

    def group(self, start="{", end="}"):
        self.take(start)
        value = self.sum()
        self.take(end)
        return value

    def atom(self):
        token = self.take()
        if token == r"\left(":
            return self.closed(self.sum(), r"\right)")
        if token in ROUNDED:
            end, rounded = ROUNDED[token]
            return Fraction(rounded(self.closed(self.sum(), end)))
        if token == r"\frac":
            return self.group() / self.group()
        if token in (r"\min", r"\max"):
            first = self.group(r"\left(", ",")
            return {r"\min": min, r"\max": max}[token](first, self.closed(self.sum(), r"\right)"))
        return Fraction(token) if token.isdigit() else Fraction(self.sizes[token.removeprefix(r"\mathrm{").strip("}")])

    def closed(self, value, end):
        self.take(end)
        return value


def evaluate(text, sizes):
    reader = Reader(text, sizes)
    value = reader.sum()
    assert not reader.tokens
    return value


def drawn(seed):
    """A random size for each name, within what the layers' own checks allow."""
    draw = random.Random(seed).randint
    axes = {axis for layer in FORMS.values() for axis in layer.sizes.split()}
    sizes = {name: draw(1, 12) for name in sorted(NAMES | axes)}
    sizes |= {"e": 2 * draw(1, 6), "p": 2 * draw(0, 3) + 1, "b": draw(1, 3)}
    return sizes | {"d": sizes["h"] * sizes["e"], "t": sizes["s"] + draw(0, 9), "E": sizes["k"] + draw(0, 9)}


def says(form, cost, sizes):
    """The page's formulas of a form, evaluated, are these counts."""
    rows = {label: text for title, label, text in ROWS if title == form}
    for label, key in QUANTITIES.items():
        counted = getattr(cost, key)
        value = evaluate(rows[label], sizes) if label in rows else 0
        if isinstance(counted, float) or r"\right)^" in rows.get(label, ""):  # expected distinct experts
            assert float(value) == pytest.approx(counted, rel=1e-12), (form, label, sizes)
        else:
            assert value == counted, (form, label, sizes)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", FORMS)
def test_each_formula_of_the_page_gives_what_the_layer_counts(form, seed):
    sizes = drawn(seed)
    layer = forms(sizes.__getitem__)[form]
    says(form, layer.cost(**{axis: sizes[axis] for axis in layer.sizes.split()}), sizes)


def sizes_of(layer):
    """The sizes of a layer as built, by the names that its formula uses; equal names must be equal sizes."""
    found = {}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, BaseLayer):
            shared = field.name == SHARED.get(type(layer).__name__)
            inner = {"fshared" if shared and name == "f" else name: size for name, size in sizes_of(value).items()}
        else:
            inner = {field.name: value} if isinstance(value, int) and not isinstance(value, bool) else {}
        for name, size in inner.items():
            assert found.setdefault(name, size) == size, (type(layer).__name__, name)
    return found


def classes(layer):
    """The classes of a layer and all in it."""
    return [type(inner) for inner in walk(layer)]


def test_formulas_hold_at_the_sizes_of_the_real_model(model):
    """A letter that stood for two sizes of the model would give another count."""
    call = {"b": 2, "s": 5, "t": 7, "u": 15, "v": 9, "i": 16, "j": 8, "k": 6, "S": 6}
    found = set()
    for layer in walk(model):
        for form, other in FORMS.items():
            plain = getattr(layer, "w", 14) is None  # a block without windows is one with a window of the whole image
            if classes(layer) == classes(other) and not plain and getattr(layer, "bias", True):
                found.add(form)
                axes = {axis: call[axis] for axis in layer.sizes.split()}
                says(form, layer.cost(**axes), axes | sizes_of(layer))
    assert {"Block", "DeepseekV2DecoderLayer with DeepseekV2MLP", "DeepseekV2DecoderLayer with DeepseekV2MoE"} <= found


@pytest.mark.parametrize("function", BUILDERS)
@pytest.mark.parametrize("a, b, c", [(2, 3, 4), (7, 2, 1), (9, 4, 3), (6, 6, 2)])
def test_each_function_of_sizes_is_written_as_it_computes(function, a, b, c):
    a, b = (max(a, b), min(a, b)) if function == "expected_distinct" else (a, b)
    values = (a, b, c)[: 3 if function == "expected_distinct" else 2]
    names = [symbol(name) for name in ("E", "k", "n")][: len(values)]
    expression = BUILDERS[function](*names)
    for text, power in ((latex(expression), 1), (latex(3 * expression**2), 2)):
        value = evaluate(text, dict(zip("Ekn", values, strict=False)))
        assert float(value) == pytest.approx(float((1, 3)[power - 1] * BUILDERS[function](*values) ** power), rel=1e-14)


def test_every_layer_of_the_page_and_every_formula_converts_to_mathml():
    assert {title for title, _, _ in ROWS} == set(FORMS)
    for _, _, text in ROWS:
        assert "<math" in convert(text) and "\\" not in convert(text)


def test_formulas_hold_nothing_that_markdown_reads():
    for _, _, text in ROWS:
        assert not re.search(r"[|*_<>$`]|\\[^A-Za-z]", text), text
