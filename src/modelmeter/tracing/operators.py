"""What an operator of torch is to the graph: its kind, what it reads and writes, its work.

A storage that no input reaches is a constant: what depends on weights and shapes alone is the same for every call, so
its scalar operations are left out (docs/counting.md), while products count wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch

from modelmeter.errors import InputError
from modelmeter.sizes import Size, expected_distinct
from modelmeter.tracing.capture import Seen, Session, Watch
from modelmeter.tracing.records import Operand, Record
from modelmeter.tracing.scalars import FREE, attention_flops, scalar_flops

_WRITES_ONLY = frozenset(["copy_", "fill_", "zero_", "normal_", "uniform_"])
_GATHERS = frozenset(["embedding", "index", "index_select", "gather"])
_SCATTERS = frozenset(["index_add_", "index_copy_", "scatter_", "scatter_add_", "index_put_"])
_KINDS = {"native_layer_norm": "norm", "native_group_norm": "norm", "_fused_rms_norm": "norm", "_softmax": "softmax"}
_LETTERS = "n m k i j p q u v w c d e f h o r x y z".split()


class _Axes:
    """Letters for sizes: one letter for one size."""

    def __init__(self) -> None:
        self.sizes: dict[str, Size] = {}

    def of(self, size: Size) -> str:
        found = next((letter for letter, known in self.sizes.items() if known is size or known == size), None)
        many = len(self.sizes)
        letter = found or (_LETTERS[many] if many < len(_LETTERS) else f"n{many}")
        self.sizes[letter] = size
        return letter


class Recorder:
    """Makes records of operators. `records` are those so far, `watch` sees the operators."""

    def __init__(self, session: Session) -> None:
        self.session, self.size = session, session.reader.size
        self.records: list[Record] = []
        self.watch = Watch(session, self.tell)
        self.reached: set[int] = set()
        self.learned: set[int] = set()
        self._experts: tuple[Size, Size, Size] | None = None
        self._selected: dict[int, Size] = {}
        self._known: dict[Any, tuple[list[int], list[Record]]] = {}

    def enter(self, name: str, tensor: torch.Tensor, **given: Any) -> int:
        """A tensor that is there before the run: a weight, a buffer or an input."""
        index = self.watch.index(tensor, name=name, born=-1, **given)
        if given.get("role") == "weight":
            self.learned.add(index)
        if given.get("input"):
            self.reach(tensor)
        return index

    def reach(self, tensor: torch.Tensor) -> None:
        """Take a tensor for one that depends on the inputs."""
        index = self.watch.index(tensor)
        self.reached.add(index)
        if tensor.is_floating_point():
            self.learned.add(index)

    @contextmanager
    def experts(self, many: int, active: Size, tokens: Size) -> Any:
        """Within, what is gathered from a weight is a weight: that of the experts which the tokens reach."""
        before, self._experts = self._experts, (many, self.size(active), self.size(tokens))
        try:
            yield
        finally:
            self._experts = before

    def tell(self, seen: Seen) -> None:
        """Make a record of an operator."""
        name = seen.name
        if "empty" in name or self._gathers_experts(seen):
            return
        made = name.startswith("new_") or name.endswith("_like")
        given = [] if made else seen.given[1:] if name in _WRITES_ONLY else seen.given
        given = [t for t in given if not any(isinstance(side, int) and side == 0 for side in t.shape)]
        sources = [self.watch.index(t) for t in given]
        reached = any(index in self.reached for index in sources)
        if not reached and isinstance(seen.tensor_flops, int) and not seen.tensor_flops and name != "attention":
            writes = tuple(self._written(t, 0) for t in seen.made)
            self._add(Record(name, "constant", "", (), writes, {}, grad=False))
            return
        for record in self._remembered(seen, given, sources):
            self._add(record)
        written = {self.watch.index(t): t for t in seen.made}
        learned = any(index in self.learned for index in sources)
        for index, tensor in written.items():
            self.reached |= {index} if reached else set()
            self.learned |= {index} if learned and tensor.is_floating_point() else set()

    def _add(self, record: Record) -> None:
        learned = any(o.storage in self.learned for o in record.reads)
        path, count = self.watch.path[-1], self.watch.count
        self.watch.count = count + 1
        grad = record.grad and (learned or bool(record.label))
        self.records.append(replace(record, path=path, grad=grad, number=count))

    def _remembered(self, seen: Seen, given: Sequence[torch.Tensor], sources: list[int]) -> Sequence[Record]:
        """The records of an operator: where it was seen on tensors alike, those of then, with its own storages."""
        if seen.key is None or any(self._chosen(t) is not None for t in given):
            return self._records(seen, given)
        storages = [*sources, *map(self.watch.index, seen.made)]
        key = (seen.key, tuple(map(storages.index, storages)))
        if key not in self._known:
            self._known[key] = storages, self._records(seen, given)
            return self._known[key][1]
        before, records = self._known[key]
        own = dict(zip(before, storages, strict=True))

        def moved(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
            return tuple(Operand(own[o.storage], o.axes, o.touched) for o in operands)

        return [replace(r, reads=moved(r.reads), writes=moved(r.writes)) for r in records]

    def _records(self, seen: Seen, given: Sequence[torch.Tensor]) -> list[Record]:
        if seen.name in _PRODUCTS:
            return [_PRODUCTS[seen.name](self, seen)]
        if seen.name == "attention":
            return self._attention(seen)
        if not isinstance(seen.tensor_flops, int) or seen.tensor_flops:
            raise InputError(f"operator {seen.name!r} is a product that tracing does not know")
        return [self._plain(seen, given)]

    def _gathers_experts(self, seen: Seen) -> bool:
        """Whether weights of chosen experts are gathered, which a kernel of a mixture does not do."""
        if self._experts is None or seen.name != "index" or not seen.given:
            return False
        index = self.watch.index(seen.given[0])
        if self.watch.storages[index].role != "weight":
            return False
        many, active, tokens = self._experts
        self.watch.alias(seen.made[0], index)
        each = self.size(prod(seen.made[0].shape[1:]))
        self._selected[seen.made[0].untyped_storage()._cdata] = expected_distinct(many, active, tokens) * each
        return True

    def _chosen(self, tensor: torch.Tensor) -> Size | None:
        """Elements of the experts that a tensor stands for; None for any other."""
        chosen = self._selected.get(tensor.untyped_storage()._cdata)
        weight = chosen is not None and self.watch.storages[self.watch.index(tensor)].role == "weight"
        return chosen if weight else None

    def _touched(self, tensor: torch.Tensor) -> Size:
        """Elements that a tensor has in memory: an axis without stride holds one."""
        chosen = self._chosen(tensor)
        if chosen is not None:
            return chosen
        sides = zip(tensor.shape, tensor.stride(), strict=True)
        return prod(self.size(size) for size, step in sides if not (isinstance(step, int) and step == 0))

    def _operand(self, tensor: torch.Tensor, axes: str) -> Operand:
        return Operand(self.watch.index(tensor), axes, self._touched(tensor))

    def _written(self, tensor: torch.Tensor, touched: Size | None = None, axes: str = "") -> Operand:
        index = self.watch.index(tensor)
        return Operand(index, axes, prod(map(self.size, tensor.shape)) if touched is None else touched)

    def _reads(self, tensors: Sequence[torch.Tensor], axes: _Axes) -> tuple[Operand, ...]:
        """The distinct parts of storages, those of one storage together."""
        once = {(self.watch.index(t), *map(self.size, (t.storage_offset(), *t.shape, *t.stride()))): t for t in tensors}
        found: dict[int, Size] = {}
        for (index, *_), tensor in once.items():
            found[index] = found.get(index, 0) + self._touched(tensor)
        return tuple(Operand(index, axes.of(size), size) for index, size in found.items())

    def _plain(self, seen: Seen, given: Sequence[torch.Tensor]) -> Record:
        """An operator without a product."""
        axes, name, plain = _Axes(), seen.name, seen.name.rstrip("_")
        cuda = self.size(scalar_flops(name, seen.args, seen.made))
        kind = _KINDS.get(name, "copy" if name in FREE or plain in FREE else "pointwise")
        out = [self._written(t) for t in seen.made]
        reads = list(self._reads(given, axes))
        if name in _GATHERS:
            kind = "lookup" if name == "embedding" else kind
            reads[0] = Operand(reads[0].storage, axes.of(out[0].touched), out[0].touched)
        elif name in _SCATTERS:
            source = next((t for t in reversed(seen.given) if t.dtype == seen.made[0].dtype), seen.given[-1])
            out = [self._written(seen.made[0], self._touched(source))]
            kept = name.endswith("add_")
            reads = [r._replace(touched=out[0].touched) for r in reads[:1] if kept] + reads[1:]
        writes = tuple(o._replace(axes=axes.of(o.touched)) for o in out)
        return Record(name, kind, "", tuple(reads), writes, axes.sizes, len(reads), cuda=cuda)

    def _product(self, seen: Seen, left: Any, right: Any, forms: Sequence[str], addend: Any = None) -> Record:
        """A matrix product; `forms` are the axes of left, right and result."""
        sizes = dict(zip(forms[0], left.shape, strict=True)) | dict(zip(forms[1], right.shape, strict=True))
        axes = {letter: self.size(size) for letter, size in sizes.items()}
        reads = [self._operand(t, " ".join(form)) for t, form in zip((left, right), forms[:2], strict=True)]
        writes = (self._written(seen.made[0], axes=" ".join(forms[2])),)
        cuda: Size = 0
        if addend is not None:
            cuda = writes[0].touched
            reads.append(self._operand(addend, "a"))
            axes["a"] = reads[-1].touched
        tensor = self.size(seen.tensor_flops)
        return Record(seen.name, "matmul", "", tuple(reads), writes, axes, 2, tensor, cuda)

    def _batched(self, seen: Seen, left: Any, right: Any, addend: Any = None) -> Record:
        """A batch of products, or one of the rows of each expert with that expert's weight."""
        for weight, rows, forms in ((left, right, ("nd", "Dfd")), (right, left, ("nd", "Ddf"))):
            chosen = self._chosen(weight)
            if chosen is None or self._experts is None:
                continue
            d, f = (forms[1].index(letter) for letter in "df")
            axes = {"n": self.size(rows.shape[0]), "d": self.size(weight.shape[d]), "f": self.size(weight.shape[f])}
            axes["D"] = expected_distinct(*self._experts)
            reads = (self._operand(rows, "n d"), self._operand(weight, " ".join(forms[1])))
            writes = (self._written(seen.made[0], axes="n f"),)
            return Record(seen.name, "matmul", "", reads, writes, axes, 2, self.size(seen.tensor_flops), over="n d f")
        return self._product(seen, left, right, ("bmk", "bkn", "bmn"), addend)

    def _convolution(self, seen: Seen) -> Record:
        """A convolution: output places against the kernel's."""
        image, kernel, bias = seen.args[:3]
        out, transposed = seen.made[0], len(seen.args) > 6 and seen.args[6]
        (b, o, *places), channels, inner = out.shape, image.shape[1], kernel.shape[0 if transposed else 1]
        axes = {"b": b, "o": o, "u": prod(places), "c": inner, "p": prod(kernel.shape[2:]), "a": channels}
        axes["i"] = prod(image.shape[2:])
        reads = [self._operand(image, "b a i"), self._operand(kernel, "c o p" if transposed else "o c p")]
        if bias is not None:
            reads.append(self._operand(bias, "o"))
        writes = (self._written(out, axes="b o u"),)
        sizes = {letter: self.size(size) for letter, size in axes.items()}
        cuda = writes[0].touched if bias is not None else 0
        tensor = self.size(seen.tensor_flops)
        return Record(seen.name, "conv2d", "", tuple(reads), writes, sizes, 2, tensor, cuda, over="b o u c p")

    def _attention(self, seen: Seen) -> list[Record]:
        """Attention as one kernel: scores, softmax with scale and bias, and the sum of values."""
        query, key, value, *mask = seen.args
        lead, heads = prod(query.shape[:-3]) if query.dim() > 3 else 1, query.shape[-3] if query.dim() > 2 else 1
        shared = key.shape[-3] if key.dim() > 2 else 1
        sides = (lead, shared, heads // shared, query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1])
        axes: dict[str, Size] = {letter: self.size(side) for letter, side in zip("bgrsteo", sides, strict=True)}
        queries, t, label = self.size(lead * heads) * axes["s"], axes["t"], f"sdpa:{self.watch.count}"
        pairs, extra = queries * t, [self._operand(m, "n") for m in mask]
        axes |= {"n": extra[0].touched} if extra else {}
        scores, weights = (Operand(self.watch.make(w, pairs), "b g r s t", pairs) for w in ("scores", "weights"))
        cuda = attention_flops(queries, t, bool(mask) and mask[0].dtype is not torch.bool)
        parts = {o.storage: o.touched for o in self._reads((query, key, value), _Axes())}  # of one storage, together
        given = [self._operand(x, o) for x, o in ((query, "b g r s e"), (key, "b g t e"), (value, "b g t o"))]
        given = [o._replace(touched=parts[o.storage]) for o in given]
        out = self._written(seen.made[0], axes="b g r s o")
        first, last = 2 * pairs * axes["e"], 2 * pairs * axes["o"]
        return [
            Record("scores", "matmul", "", (given[0], given[1]), (scores,), axes, 2, first, label=label),
            Record("softmax", "softmax", "", (scores, *extra), (weights,), axes, 1 + len(extra), 0, cuda, label=label),
            Record("attention", "matmul", "", (weights, given[2]), (out,), axes, 2, last, label=label),
        ]


_PRODUCTS = {
    "mm": lambda of, seen: of._product(seen, *seen.args[:2], ("mk", "kn", "mn")),
    "addmm": lambda of, seen: of._product(seen, *seen.args[1:3], ("mk", "kn", "mn"), seen.args[0]),
    "bmm": lambda of, seen: of._batched(seen, *seen.args[:2]),
    "baddbmm": lambda of, seen: of._batched(seen, *seen.args[1:3], seen.args[0]),
    "convolution": lambda of, seen: of._convolution(seen),
}  # fmt: skip
