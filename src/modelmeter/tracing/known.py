"""What operators make of tensors, remembered: the same operator on tensors of the same sizes is worked out once.

A tensor of a run holds nothing, so what an operator makes depends on its arguments' formats, sizes, strides and numbers
alone. Layers repeat, and with them would all of torch's reasoning on symbolic sizes. Remembered is what is made anew
or is a view of the first argument; what changes its arguments, holds values or depends on them runs each time. The
questions that an operator asks of sizes were asked, and noted, when it ran first: the domain is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.fx.experimental.symbolic_shapes import ShapeEnv, SLoc, free_unbacked_symbols
from torch.utils._pytree import tree_leaves

_NUMBERS = (
    bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_REAL = (torch.Tensor, torch.nn.Parameter)
_UNSURE = {torch.Tag.data_dependent_output, torch.Tag.inplace_view}


class Sizes(ShapeEnv):
    """Sizes without values. A question that was answered is not worked out again, nor where in the code it stands."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False)
        self._answers: dict[Any, Any] = {}

    def evaluate_expr(
        self, orig_expr: Any, hint: Any = None, fx_node: Any = None, size_oblivious: bool = False,
        fallback_value: bool | None = None, *, forcing_spec: bool = False,
    ) -> Any:  # fmt: skip
        """The answer for the hints; noted as a guard where it is one, so that a suppressed question is another."""
        asked = (orig_expr, size_oblivious, fallback_value, forcing_spec, self._suppress_guards_tls())
        if asked not in self._answers:
            self._answers[asked] = super().evaluate_expr(
                orig_expr, hint, fx_node, size_oblivious, fallback_value, forcing_spec=forcing_spec
            )
        return self._answers[asked]

    def _get_stack_summary(self, is_debug: bool = False, framework_loc: str | None = None) -> tuple[SLoc, str]:
        return SLoc(framework_loc, None), ""


class _Result(NamedTuple):
    """A tensor that an operator makes, a view of its first argument or not: sizes, strides and offset."""

    view: bool
    place: tuple[Any, Any, Any]
    dtype: torch.dtype
    device: torch.device


class Known:
    """Runs operators, each once for arguments that are alike; `mode` makes fake tensors, None stands for real ones."""

    def __init__(self, mode: FakeTensorMode | None) -> None:
        self.mode = mode
        self._results: dict[Any, Any] = {}
        self._nodes: dict[int, tuple[str, Any]] = {}
        self._names: dict[Any, str] = {}
        self._sure: dict[Any, bool] = {}

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any], key: Any) -> Any:
        """What the operator makes of these arguments; `key` is theirs."""
        found = self._results.get(key) if key else None
        if found is None:
            out = func(*args, **kwargs)
            if key:
                self._results[key] = self._remembered(args, kwargs, out) or ()
            return out
        if not found:
            return func(*args, **kwargs)
        several, results = found
        made = [self._made(result, args) for result in results]
        return several(made) if several else made[0]

    def key(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The operator and all that its results depend on; None where that is not known."""
        sure = self._sure.get(func)
        if sure is None:
            sure = self._sure[func] = not func._schema.is_mutable and _UNSURE.isdisjoint(func.tags)
        found: list[Any] = [func, torch.get_default_dtype(), *kwargs]
        if sure and self._describe(found, args) and self._describe(found, kwargs.values()):
            return tuple(found)
        return None

    def _describe(self, found: list[Any], values: Iterable[Any]) -> bool:
        """Append what makes results what they are; whether that can be."""
        for value in values:
            kind = type(value)
            if isinstance(value, torch.Tensor):
                if not self._plain(value):
                    return False
                found += (value.dtype, self._device(value), value.dim(), *map(self._size, value.shape))
                found += (*map(self._size, value.stride()), self._size(value.storage_offset()))
            elif isinstance(value, (list, tuple)):
                found += (kind, len(value))
                if not self._describe(found, value):
                    return False
            elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                found += (kind, self._size(value))
            elif isinstance(value, _NUMBERS):
                found += (kind, value)
            else:
                return False
        return True

    def _plain(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is nothing but its sizes."""
        real = type(tensor) in _REAL
        if not real and (self.mode is None or not isinstance(tensor, FakeTensor)):
            return False
        value = tensor if real else tensor.constant
        holds = value is not None and value.numel() > 0 and (self.mode is not None or value.device.type != "meta")
        odd = tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg() or tensor.requires_grad
        return not holds and not odd

    def _device(self, tensor: Any) -> Any:
        """Where a tensor is; of a fake one without asking torch."""
        return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device

    def _size(self, value: Any) -> Any:
        """A number, or the name of a symbolic one."""
        if isinstance(value, int):
            return value
        node = value.node
        known = self._nodes.get(id(node))
        if known is None:
            name = self._names.setdefault(node.expr, f"{len(self._names)}")
            known = self._nodes[id(node)] = (name, node)  # kept, so that its id stays its own
        return known[0]

    def _remembered(self, args: Any, kwargs: Mapping[str, Any], out: Any) -> Any:
        """How results are made again; None where they cannot be."""
        several = type(out) if type(out) in (list, tuple) else None
        made = list(out) if several else [out]
        if not all(isinstance(tensor, torch.Tensor) and self._plain(tensor) for tensor in made):
            return None
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        owners = [t.untyped_storage()._cdata for t in given]
        found = []
        for tensor in made:
            owner = tensor.untyped_storage()._cdata
            view = bool(given) and given[0] is args[0] and owner == owners[0]
            if any(tensor is t for t in given) or (owner in owners and not view) or free_unbacked_symbols(tensor):
                return None
            owners += [] if view else [owner]
            place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            found.append(_Result(view, place, tensor.dtype, self._device(tensor)))
        return several, found

    def _made(self, result: _Result, args: Any) -> torch.Tensor:
        """A result once more."""
        if self.mode is None:
            held = args[0] if result.view else torch.empty(0, dtype=result.dtype, device="meta")
            return held.as_strided(*result.place)
        with in_kernel_invocation_manager(self.mode):
            held = args[0] if result.view else torch.empty(0, dtype=result.dtype, device="meta")
            made = held.as_strided(*result.place)
        return FakeTensor(self.mode, made, result.device)
