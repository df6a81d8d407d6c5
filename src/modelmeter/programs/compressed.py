"""How nncf compresses the weights of a graph for OpenVINO: matrices by where they stand. Data: `policies.yaml`.

Matrices are what products, convolutions and look-ups read; norms, biases and positions that are added stay in the
format of activations. Next: `storage.py`; how llama.cpp stores tensors: `policies.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Op
from modelmeter.programs.formats import FORMATS, Format
from modelmeter.programs.policies import data, of_decoder
from modelmeter.programs.weights import weights_of
from modelmeter.runtimes.ggml import casts

COMPRESSED: Mapping[str, Mapping[str, Any]] = data()["compressed"]
"""The policies by name."""
_PRODUCTS = ("matmul", "conv2d", "lookup", "unused")


def compressed(graph: Graph, policy: str) -> dict[str, Format]:
    """The formats of a graph's matrices by name: of those wanted, the first whose groups fit the columns.

    >>> from modelmeter.layers import TokenEmbedding
    >>> [form.name for form in compressed(TokenEmbedding(V=100, d=4).graph(), "openvino_int4").values()]
    ['int8_channel_zp']
    """
    known = weights_of(graph)
    found = {}
    for name in dict.fromkeys(name for op in graph.ops for name in _matrices(op) if name in known):
        forms = [FORMATS[wanted] for wanted in _wanted(name, COMPRESSED[policy]).split()]
        found[name] = next(form for form in forms if form.fits(known[name].columns))
    return found


def _wanted(name: str, rules: Mapping[str, Any]) -> str:
    """The formats that a matrix may have, the best first."""
    if not of_decoder([name]):
        return str(rules["elsewhere"])
    inside = name.startswith("decoder.")
    return f"{rules['layers']} {rules['backup']}" if inside or rules.get("all_layers") else str(rules["backup"])


def _matrices(op: Op) -> Iterator[str]:
    """The names of the weights that an op multiplies or looks up, or that it casts for a product."""
    if op.kind in _PRODUCTS or (op.kind == "copy" and casts(op)):
        added = {op.n.resolve(t.name)[1] for t in op.equation.addends}
        yield from (r.name for r in op.reads if r.role == "weight" and r.name not in added)
