"""Every kernel that a real module launches: which, in what order, and the bytes of its operands.

Where counters.py adds up the work of some operators, `Operators` lists all of them. A kernel is a
dispatched operator that writes memory: views and bare allocations are none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from modelmeter.validate.counters import Watch, tensors_in

_WRITES_ONLY = frozenset(["copy_", "fill_", "zero_", "normal_", "uniform_"])
_GATHERS = frozenset(["embedding", "index", "index_select", "gather"])
_SCATTERS = frozenset(["index_add_", "index_copy_", "scatter_", "scatter_add_", "index_put_"])
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "int64"}


@dataclass(frozen=True)
class Operand:
    """What an operator reads or writes of one tensor: `shape` without what is only broadcast."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{_DTYPES.get(self.dtype, str(self.dtype).removeprefix('torch.'))}{list(self.shape)}"


@dataclass(frozen=True)
class Kernel:
    """One launched operator. `constant` says that no operand's values depend on the inputs.

    `copies` are operands that are not contiguous though the operator wants them so: a GPU copies
    them first, inside the operator, where no dispatch is seen.
    """

    name: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    constant: bool
    copies: tuple[Operand, ...] = ()

    @property
    def bytes_read(self) -> int:
        return sum(o.bytes for o in self.reads)

    @property
    def bytes_written(self) -> int:
        return sum(o.bytes for o in self.writes)

    @property
    def bytes(self) -> int:
        return self.bytes_read + self.bytes_written

    def __str__(self) -> str:
        sides = (" ".join(map(str, side)) for side in (self.reads, self.writes))
        hidden = f" (copies {' '.join(map(str, self.copies))})" if self.copies else ""
        return f"{self.name}: {' -> '.join(sides)}{' constant' if self.constant else ''}{hidden}"


def _operand(tensor: torch.Tensor) -> Operand:
    """A tensor as it lies in memory: an axis of stride 0 holds one element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return Operand(tuple(1 if step == 0 and size else size for size, step in sizes), tensor.dtype)


def _operands(tensors: Iterable[torch.Tensor]) -> list[Operand]:
    """The distinct tensors: two views of the same elements are one operand."""
    once = {(StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return [_operand(t) for t in once.values()]


class Operators(Watch):
    """Records every kernel in order; `kernels` are those that depend on `inputs`, `seen` are all.

    >>> x = torch.ones(2, 3)
    >>> with Operators(x) as operators:
    ...     y = (x.t() + torch.arange(3)[:, None]).softmax(-1)
    >>> [kernel.name for kernel in operators.kernels], operators.bytes
    (['add', '_softmax'], 120)
    """

    def __init__(self, inputs: Any) -> None:
        super().__init__()
        self.seen: list[Kernel] = []
        self._tainted: set[StorageWeakRef] = set()
        self._taint(tensors_in(inputs))

    @property
    def kernels(self) -> list[Kernel]:
        """The kernels that depend on the inputs."""
        return [kernel for kernel in self.seen if not kernel.constant]

    @property
    def bytes(self) -> int:
        """Bytes that the kernels that depend on the inputs read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    def _taint(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tainted.update(StorageWeakRef(t.untyped_storage()) for t in tensors)

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        self._record("attention", reads, [out], _operands(reads), [_operand(out)])

    def _record(self, name: str, needs: list[torch.Tensor], out: list[torch.Tensor], *sides: list[Operand]) -> None:
        depends = any(StorageWeakRef(t.untyped_storage()) in self._tainted for t in needs)
        if depends:
            self._taint(out)
        copied = [t for t in needs[:1] if name == "native_layer_norm" and not t.is_contiguous()]
        reads, writes = sides
        self.seen.append(Kernel(name, tuple(reads), tuple(writes), not depends, tuple(_operands(copied))))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name, inputs, out = func.overloadpacket.__name__, tensors_in((args, kwargs)), tensors_in(result)
        owners = {StorageWeakRef(t.untyped_storage()) for t in inputs}
        aliases = all(StorageWeakRef(t.untyped_storage()) in owners for t in out)  # true where there is no result
        if func.is_view or "empty" in name or (aliases and not func._schema.is_mutable):
            return result
        if name.startswith("new_") or name.endswith("_like"):
            inputs = []  # only the shape is read
        elif name in _WRITES_ONLY:
            inputs = inputs[1:]
        reads, writes = _operands(inputs), [_operand(t) for t in out]
        if name in _GATHERS:
            reads = [Operand(writes[0].shape, args[0].dtype), *_operands(inputs[1:])]
        elif name in _SCATTERS:
            source = inputs[-1] if inputs[-1].dtype == out[0].dtype else inputs[1]
            writes = [Operand(_operand(source).shape, out[0].dtype)]
            reads = writes * name.endswith("add_") + _operands(inputs[1:])
        self._record(name, inputs, out, reads, writes)
        return result


class LiveStorages(Watch):
    """The largest sum of live storages, those of `weights` apart, with attention as one kernel.

    `at_peak` lists the shapes alive then.
    """

    def __init__(self, inputs: Any, weights: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._weights = [w.untyped_storage() for w in weights]
        self._known = {s._cdata for s in self._weights}
        self._live: dict[int, tuple[StorageWeakRef, int, tuple[int, ...]]] = {}
        self.peak = 0
        self.at_peak: list[tuple[int, tuple[int, ...]]] = []
        self._track(inputs)

    def attention(self, reads: list[torch.Tensor], out: torch.Tensor) -> None:
        self._track(out)

    def _track(self, result: Any) -> None:
        for key in [k for k, (ref, _, _) in self._live.items() if ref.expired()]:
            del self._live[key]
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known and storage._cdata not in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), tuple(tensor.shape))
        total = sum(size for _, size, _ in self._live.values())
        if total > self.peak:
            self.peak = total
            self.at_peak = sorted(((size, shape) for _, size, shape in self._live.values()), reverse=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._track(result)
        return result


def live_at_peak(run: Any, inputs: Any, weights: Iterable[torch.Tensor]) -> LiveStorages:
    """Runs `run` and returns the peak of live storages (`peak`) and what is alive then (`at_peak`)."""
    with torch.no_grad(), LiveStorages(inputs, weights) as live:
        run()
    return live
