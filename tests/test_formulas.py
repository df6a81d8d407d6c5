"""The LaTeX of docs/formulas.md, read back and evaluated, is what the code computes."""

import math
import random
import re
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from latex2mathml.converter import convert

from modelmeter import layers
from modelmeter.layer import BaseLayer
from modelmeter.report.formulas import _INNER, FORMULAS, QUANTITIES, formula, latex, symbol, variants
from modelmeter.sizes import FUNCTIONS

PAGE = Path("docs/formulas.md").read_text()
ROWS = [
    (section.splitlines()[0], label, text)
    for section in PAGE.split("\n## ")[1:]
    for label, text in re.findall(r"^\| ([^|]+) \| \$([^|]+)\$ \|$", section, flags=re.MULTILINE)
]
FORMS = {f"{name} {form}".strip(): (name, chosen) for name in FORMULAS for form, chosen in variants(name).items()}
TOKEN = re.compile(
    r"\\(?:left|right)[()]|\\left\\lceil|\\right\\rceil|\\mathrm\{\w+\}|\\frac|\\m(?:in|ax)|\d+|[A-Za-z]|[-+,^{}]"
)


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
        while self.tokens and not self.next_is("+", "-", ",", "}", r"\right)", r"\right\rceil"):
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
        if token == r"\left\lceil":
            return Fraction(math.ceil(self.closed(self.sum(), r"\right\rceil")))
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
    names = {name for form in FORMS for name in formula_names(form)}
    sizes = {name: draw(1, 12) for name in sorted(names)}
    sizes |= {"e": 2 * draw(1, 6), "p": 2 * draw(0, 3) + 1, "b": draw(1, 3)}
    return sizes | {"d": sizes["h"] * sizes["e"], "t": sizes["s"] + draw(0, 9), "E": sizes["k"] + draw(0, 9)}


@cache
def formula_names(form):
    """The names of the sizes that a form of a layer asks for."""
    asked = []
    layer, chosen = FORMS[form]
    formula(getattr(layers, layer), lambda name: asked.append(name) or symbol(name), chosen)
    return asked


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", FORMS)
def test_each_formula_of_the_page_gives_what_the_layer_counts(form, seed):
    sizes = drawn(seed)
    layer, chosen = FORMS[form]
    cost = formula(getattr(layers, layer), sizes.__getitem__, chosen)
    rows = {label: text for title, label, text in ROWS if title == form}
    for label, key in QUANTITIES.items():
        counted = getattr(cost, key)
        value = evaluate(rows[label], sizes) if label in rows else 0
        if isinstance(counted, float):  # expected distinct experts
            assert float(value) == pytest.approx(counted, rel=1e-12), (label, sizes)
        else:
            assert value == counted, (label, sizes)


def sizes_of(layer, names=None):
    """The sizes of a layer as built, by the names that its formula uses; equal names must be equal sizes."""
    found = {}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, BaseLayer):
            apart = _INNER.get((type(layer).__name__, field.name))
            for name, size in sizes_of(value, apart).items():
                assert found.setdefault(name, size) == size, (type(layer).__name__, name)
        elif isinstance(value, int) and not isinstance(value, bool):
            name = (names or {}).get(field.name, field.name)
            assert found.setdefault(name, value) == value, (type(layer).__name__, name)
    return found


def built(node, found):
    """Every layer of a model, by the form of its formula."""
    if isinstance(node, BaseLayer) and type(node).__name__ in FORMULAS:
        for form, (name, chosen) in FORMS.items():
            if type(node).__name__ == name and all(type(getattr(node, f)) is kind for f, kind in chosen.items()):
                found.setdefault(form, node)
    parts = (
        node if isinstance(node, tuple) else [getattr(node, f.name) for f in fields(node)] if is_dataclass(node) else []
    )
    for part in parts:
        built(part, found)
    return found


def test_formulas_hold_at_the_sizes_of_the_real_model(model):
    """A letter that stood for two sizes of the model would give another count."""
    found = built(model, {})
    assert "DeepseekV2MoE" in found and "DeepseekV2DecoderLayer with DeepseekV2MoE" in found
    for form, layer in found.items():
        call = {"b": 2, "s": 5, "t": 7, "u": 15, "v": 9, "i": 16, "j": 8}
        call = {axis: call[axis] for axis in layer.sizes.split()}
        rows = {label: text for title, label, text in ROWS if title == form}
        cost, sizes = layer.cost(**call), call | sizes_of(layer)
        if getattr(layer, "w", 14) is None:
            continue  # a block without windows is the same as one with a window of the whole image
        for label, key in QUANTITIES.items():
            value = evaluate(rows[label], sizes) if label in rows else 0
            assert float(value) == pytest.approx(float(getattr(cost, key)), rel=1e-12), (form, label)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("a, b, c", [(2, 3, 4), (7, 2, 1), (9, 4, 3), (6, 6, 2)])
def test_each_function_of_sizes_is_written_as_it_computes(function, a, b, c):
    a, b = (max(a, b), min(a, b)) if function == "expected_distinct" else (a, b)
    values = (a, b, c)[: 3 if function == "expected_distinct" else 2]
    names = [symbol(name) for name in ("E", "k", "n")][: len(values)]
    expression = FUNCTIONS[function](*names)
    for text, power in ((latex(expression), 1), (latex(3 * expression**2), 2)):
        value = evaluate(text, dict(zip("Ekn", values, strict=False)))
        assert float(value) == pytest.approx(
            float((1, 3)[power - 1] * FUNCTIONS[function](*values) ** power), rel=1e-14
        )


def test_every_layer_of_the_page_and_every_formula_converts_to_mathml():
    assert {title for title, _, _ in ROWS} == set(FORMS)
    for _, _, text in ROWS:
        assert "<math" in convert(text) and "\\" not in convert(text)


def test_formulas_hold_nothing_that_markdown_reads():
    for _, _, text in ROWS:
        assert not re.search(r"[|*_<>$`]|\\[^A-Za-z]", text), text
