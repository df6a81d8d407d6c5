"""Storage: how each tensor of a graph is stored, by its name, its role and its shape; the one law of bytes.

A weight that stands for many layers, which a policy may store in several formats, has their exact mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import Ref
from modelmeter.programs.compressed import COMPRESSED, compressed
from modelmeter.programs.formats import ACTIVATIONS, Format
from modelmeter.programs.policies import tensors_of
from modelmeter.programs.precision import Precision
from modelmeter.programs.weights import Weight, weights_of
from modelmeter.sizes import Size, ratio, whole


class Share(NamedTuple):
    """A format, the share of a tensor's elements that have it, the bytes of one such."""

    format: Format
    share: Fraction
    bytes: Size


class Storage:
    """How the tensors of a graph, and the gradients of its weights, are stored under a precision.

    >>> from modelmeter.layers import RMSNorm
    >>> graph = RMSNorm(4).graph()
    >>> Storage(graph, Precision(weights="int8", overrides={"*W_weight": "fp32"})).bytes(graph.ops[0].reads[1])
    4
    """

    def __init__(self, graph: Graph, precision: Precision) -> None:
        self.graph, self.precision = graph, precision
        self._known: dict[tuple[str, str], tuple[Share, ...]] = {}
        self._bytes: dict[tuple[str, str], Size] = {}

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """The weights of the graph by name."""
        return weights_of(self.graph)

    @cached_property
    def _policy(self) -> dict[str, tuple[Share, ...]]:
        """What a policy says of the weights, if there is one."""
        if not self.precision.policy:
            return {}
        if self.precision.policy in COMPRESSED:
            forms = compressed(self.graph, self.precision.policy)
            return {name: (Share(form, Fraction(1), self._each(form, name, "weight")),) for name, form in forms.items()}
        found: dict[str, dict[tuple[Format, Size], int]] = {}
        for tensor in tensors_of(self.graph, self.precision.policy):
            for name, elements in tensor.slot.parts.items():
                shares, key = found.setdefault(name, {}), (tensor.format, tensor.format.each(tensor.slot.shape[0]))
                shares[key] = shares.get(key, 0) + elements
        return {name: _shares(counted) for name, counted in found.items()}

    def shares(self, r: Ref) -> tuple[Share, ...]:
        """The formats of a tensor. Raises InputError for one that its shape forbids."""
        found = self._known.get((r.name, r.role))
        if found is None:
            found = self._known[r.name, r.role] = self._found(r.name.removeprefix("grad."), r)
        return found

    def _found(self, name: str, r: Ref) -> tuple[Share, ...]:
        form = self.precision.override(r.name)
        if form is None and r.role == "weight" and name in self._policy:
            return self._policy[name]
        form = form or self.precision.format(r.role)
        each = self._each(form, name, r.role) if form.shaped else whole(form.bytes)
        return (Share(form, Fraction(1), each),)

    def _each(self, form: Format, name: str, role: str) -> Size:
        """Bytes an element of a format that has blocks or rows."""
        weight = self.weights.get(name) if role == "weight" else None
        if weight is None:
            if form.row or form.matrix:
                raise InputError(f"{form.name} has a scale a row or a matrix: it is for weights, and {name} is none")
            return form.each(form.block)
        if not form.fits(weight.columns):
            raise InputError(
                f"{name} has {weight.columns} columns, no multiple of {form.block}, the block of {form.name}; "
                f"precision.overrides gives it another format"
            )
        return form.each(weight.columns, weight.rows)

    def bytes(self, r: Ref) -> Size:
        """Bytes an element of a tensor: its declared bits, or those of its formats."""
        if r.bits:
            return ratio(r.bits, 8)
        key = r.name, r.role
        if key not in self._bytes:
            self._bytes[key] = whole(sum(part.share * part.bytes for part in self.shares(r)))
        return self._bytes[key]

    def multiplied(self, operands: Iterable[Ref], activations: str) -> str:
        """The format that the engine multiplies in: that of the weight, or of the activations."""
        parts = [part for r in operands if r.role == "weight" and not r.bits for part in self.shares(r)]
        forms = dict.fromkeys(part.format.multiplied for part in parts)
        return "+".join(activations if form == ACTIVATIONS else form for form in forms) or activations


def _shares(counted: dict[tuple[Format, Size], int]) -> tuple[Share, ...]:
    elements = sum(counted.values())
    return tuple(Share(form, Fraction(many, elements), each) for (form, each), many in counted.items())
