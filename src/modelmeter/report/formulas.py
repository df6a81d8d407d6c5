"""Formulas and glossary as Markdown, generated from the layers' own programs. Never typed.

python -m modelmeter.report.formulas writes docs/formulas.md and docs/glossary.md. Formulas are LaTeX
between dollars, which GitHub and the documentation site both show. `latex` is the only place that knows
how an expression of sizes is written; tests/test_formulas.py reads the page back and evaluates it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache, partial
from operator import truediv
from pathlib import Path
from typing import Any

from modelmeter import layers as of
from modelmeter.graph.axes import AXES
from modelmeter.layers import BaseLayer
from modelmeter.programs.cost import StageCost
from modelmeter.sizes import Expr, Size, symbol

QUANTITIES = {
    "tensor-core FLOPs": "tensor_core_flops",
    "CUDA-core FLOPs": "cuda_core_flops",
    "parameters": "parameters",
    "weight I/O, bytes": "weight_io_bytes",
    "activation I/O, bytes": "activation_io_bytes",
    "KV I/O, bytes": "kv_io_bytes",
    "KV cache, bytes": "kv_cache_bytes",
}
STACKS = ("BaseLayer", "CausalLM", "DeepEncoder", "ImageEncoderViT", "PatchTower", "Repeat", "Sequence")
"""The layers that are no formulas of single sizes but sums of their parts."""
_WRITTEN: dict[str, Callable[..., str]] = {
    "ceil_div": r"\left\lceil \frac{{{0}}}{{{1}}} \right\rceil".format,
    "floor_div": r"\left\lfloor \frac{{{0}}}{{{1}}} \right\rfloor".format,
    "minimum": r"\min\left({0}, {1}\right)".format,
    "maximum": r"\max\left({0}, {1}\right)".format,
    "expected_distinct": r"\left(1 - \left(1 - \frac{{{1}}}{{{0}}}\right)^{{{2}}}\right)".format,  # times E
}
_SHORT = 80
"""Characters of LaTeX up to which the plain form of a formula is kept."""


def made(layer: Any, n: Callable[[str], Size], /, **given: Any) -> Any:
    """A layer of a class with these fields, every other size `n(its field's name)`."""
    sizes = (field.name for field in fields(layer) if field.type == "Size" and field.name not in given)
    return layer(**{name: n(name) for name in sizes}, **given)


def forms(n: Callable[[str], Size] = symbol) -> dict[str, BaseLayer]:
    """Every layer of the page by its title, each size `n(name)`: equal names are equal sizes."""
    rms, layer_norm, mlp = made(of.DeepseekV2RMSNorm, n), made(of.LayerNorm, n), made(of.DeepseekV2MLP, n)
    rotary, shared = made(of.LlamaRotaryEmbedding, n), made(of.DeepseekV2MLP, n, f=n("fshared"))
    llama = made(of.LlamaAttention, n, rotary=rotary)
    moe = made(of.DeepseekV2MoE, n, gate=made(of.MoEGate, n), shared=shared)
    clip = of.NoTPTransformerBlock(made(of.NoTPAttention, n), made(of.NoTPFeedForward, n), layer_norm)
    embeddings = made(of.CLIPVisionEmbeddings, n, patch=made(of.PatchEmbed, n, bias=False))
    encoder, grid = made(of.NoTPTransformer, n, layer=clip), (made(of.MLPBlock, n), layer_norm, n("w"))
    stacks = {
        "Block": of.Block(made(of.Attention, n), *grid),
        "CLIPVisionEmbeddings": embeddings,
        "CausalAttention": made(of.CausalAttention, n, window=n("window")),
        "DeepseekV2DecoderLayer with DeepseekV2MLP": of.DeepseekV2DecoderLayer(llama, mlp, rms),
        "DeepseekV2DecoderLayer with DeepseekV2MoE": of.DeepseekV2DecoderLayer(llama, moe, rms),
        "DeepseekV2MoE": moe,
        "GridBlock": of.GridBlock(made(of.GridAttention, n), *grid),
        "LlamaAttention": llama, "LlamaFlashAttention2": made(of.LlamaFlashAttention2, n, rotary=rotary),
        "MergedExpertsMoE": made(of.MergedExpertsMoE, n, gate=made(of.MoEGate, n), shared=shared),
        "Mixture": made(of.Mixture, n, gate=made(of.Router, n), shared=shared),
        "MlpProjector": made(of.MlpProjector, n, kind="linear"),
        "NoTPTransformer": encoder,
        "NoTPTransformerBlock": clip,
        "ResidualBlock": of.ResidualBlock(made(of.SelfAttention, n), made(of.GatedMLP, n), made(of.RMSNorm, n)),
        "Transformer": made(of.Transformer, n, layer=clip),
        "VitModel": of.VitModel(embeddings, layer_norm, encoder),
    }  # fmt: skip
    named = {title.partition(" ")[0] for title in stacks}
    plain = {name: made(getattr(of, name), n) for name in of.__all__ if name not in (*STACKS, *named)}
    return dict(sorted((plain | stacks).items()))


@cache
def formulas() -> dict[str, StageCost]:
    """The StageCost of each layer of the page in symbols: bf16, flash, causal full."""
    return {title: layer.program().costs[""] for title, layer in forms().items()}


@cache
def latex(value: Size) -> str:
    """An expression of sizes as LaTeX, without the surrounding dollars and without a character that Markdown reads.

    >>> latex(2 * symbol("b") * symbol("side") + 2 * symbol("b"))
    '2 b \\\\left(\\\\mathrm{side} + 1\\\\right)'
    """
    import sympy

    letters = {name: sympy.Symbol(name, positive=True) for name in (value.names if isinstance(value, Expr) else ())}
    names: dict[Any, str] = {s: rf"\mathrm{{{name}}}" for name, s in letters.items() if len(name) > 1}

    def write(expression: Any) -> str:
        return str(sympy.latex(expression, symbol_names=names, order="lex"))

    def call(function: str, *arguments: Any) -> Any:
        """A symbol that prints as the function's notation."""
        text = _WRITTEN[function](*map(write, arguments))
        found = sympy.Symbol("~" + text, positive=True)  # ~ sorts it behind the letters
        names[found] = text
        return found

    functions: dict[str, Any] = {function: partial(call, function) for function in _WRITTEN}
    functions |= {
        "ratio": truediv,
        "place_in": lambda n, chunk: n - chunk * (call("ceil_div", n, chunk) - 1),
        "expected_distinct": lambda E, k, n: E * call("expected_distinct", E, k, n),
    }
    plain, *others = map(write, _shapes(sympy.expand(sympy.sympify(str(value), locals=functions | letters))))
    return plain if len(plain) <= _SHORT else min((plain, *others), key=len)


def _shapes(expanded: Any) -> Iterator[Any]:
    """The same sum in several forms: common factors taken out, fully factored, collected by one symbol."""
    import sympy

    yield sympy.factor_terms(expanded)
    yield sympy.factor(expanded)
    for by in sorted(expanded.free_symbols, key=str):
        yield sympy.factor_terms(sympy.collect(expanded, by))


_HEAD = r"""# Formulas

Generated by `python -m modelmeter.report.formulas` from the layers' own programs: bf16, flash attention, causal
full, the vendor's rotary form. Letters are explained in [the glossary](glossary.md), conventions in
[what is counted](counting.md). Other names are fields of the layer; fshared is the width of the shared experts of a
mixture.

$\left\lceil x \right\rceil$ is rounded up. $E \left(1 - \left(1 - \frac{k}{E}\right)^{n}\right)$ is the
expected number of distinct experts that n tokens reach under uniform routing.

Stacks (`ImageEncoderViT`, `CausalLM`, `Repeat`, `Sequence`...) are the sum of their parts.
"""


def summary_of(layer: str) -> str:
    """The first line of a layer's docstring."""
    return (inspect.getdoc(getattr(of, layer)) or "").splitlines()[0]


def formulas_markdown() -> str:
    """docs/formulas.md: every layer's own formulas, straight from its equations."""
    lines = [_HEAD]
    for title, cost in formulas().items():
        lines += [f"## {title}", "", summary_of(title.partition(" ")[0]), "", "| quantity | formula |", "|---|---|"]
        values = {label: getattr(cost, key) for label, key in QUANTITIES.items()}
        lines += [*(f"| {label} | ${latex(value)}$ |" for label, value in values.items() if value != 0), ""]
    return "\n".join(lines)


def glossary_markdown() -> str:
    """docs/glossary.md: one letter an axis."""
    lines = ["# Glossary of axes", "", "Generated by `python -m modelmeter.report.formulas`.", "", "| axis | meaning |"]
    lines += ["|---|---|", *(f"| `{axis}` | {meaning} |" for axis, meaning in AXES.items())]
    return "\n".join([*lines, ""])


GENERATED = {"docs/formulas.md": formulas_markdown, "docs/glossary.md": glossary_markdown}

if __name__ == "__main__":
    for path, make in GENERATED.items():
        Path(path).write_text(make(), encoding="utf-8")
