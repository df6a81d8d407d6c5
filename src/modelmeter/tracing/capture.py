"""One run of a torch module with fake tensors and symbolic sizes. Like `known.py`, it leans on private parts of torch.

`ShapeEnv` gives sizes without values, `FakeTensorMode` tensors without memory, a dispatch mode sees every operator.
What an operator is to the graph is told in `operators.py`. tests/test_trace.py holds what is relied upon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from modelmeter.errors import InputError
from modelmeter.sizes import Size, symbol
from modelmeter.tracing.known import Known, Sizes
from modelmeter.tracing.records import Storage
from modelmeter.tracing.symbols import Condition, Reader

DATA_DEPENDENT = (
    DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode,
    UnsupportedOperatorException,
)  # fmt: skip
"""What torch raises where code asks for the values of a tensor."""


class Session:
    """Sizes, symbolic or concrete, and the fake tensors that have them; `names` say what each is in sizes of ours."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, concrete: bool = False) -> None:
        self.env = Sizes()
        self.concrete = concrete
        fake = not concrete or device.type != "meta"  # numbers need no fakes where tensors hold nothing anyway
        self.fakes = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True) if fake else None
        if self.fakes is not None:
            self.fakes.cache_enabled = False  # `Known` remembers more, for less
        self.mode: Any = nullcontext() if self.fakes is None else self.fakes
        self.device, self.dtype = device, dtype
        self.names: dict[str, Size] = {}
        self.symbols: dict[str, Any] = {}
        self.reader = Reader(self.names)

    def size(self, name: str, hint: int, meaning: Size = None) -> Any:
        """A symbolic size; `meaning` is what it is in sizes of ours, by default one of this name.

        In a session with concrete sizes it is the hint itself.
        """
        if self.concrete:
            return hint
        source = ConstantSource(name)
        made = self.env.create_symbol(hint, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        self.names[made.name] = symbol(name) if meaning is None else meaning
        self.symbols[name] = made
        return self.env.create_symintnode(made, hint=hint, source=source)

    def tensor(self, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        """A fake tensor of some symbolic shape."""
        with self.mode:
            return torch.zeros(tuple(shape), dtype=dtype, device=self.device)

    def fake(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Fake tensors like real ones; what is one tensor stays one."""
        made: dict[int, torch.Tensor] = {}
        with self.mode:
            for tensor in tensors.values():
                if id(tensor) not in made:
                    made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        return {name: made[id(tensor)] for name, tensor in tensors.items()}

    def fixed(self) -> dict[str, int]:
        """Sizes that the code fixed to a number, by name."""
        found = ((name, self.env.replacements.get(made)) for name, made in self.symbols.items())
        return {name: int(value) for name, value in found if value is not None and value.is_number}

    def conditions(self) -> Iterator[Condition]:
        """What the code asked of the sizes, answered for the hints. Raises InputError for what cannot be said."""
        for guard in self.env.guards:
            yield from self.reader.conditions(guard.expr)
        for name, made in self.symbols.items():
            if made in self.env.replacements:
                yield from self.reader.conditions(_equation(made, self.env.replacements[made]))
            least = self.env.var_to_range[made].lower
            if not least.is_infinite and made not in self.env.replacements:
                size = self.names[made.name]
                yield Condition(f"{size} >= {least}", size - int(least), name)


def _equation(left: Any, right: Any) -> Any:
    import sympy

    return sympy.Eq(left, right, evaluate=False)


class Seen:
    """What an operator was given and made, as tensors; operators.py makes records of it."""

    def __init__(self, name: str, args: Any, kwargs: Any, out: Any, mutable: bool, key: Any = None) -> None:
        self.name, self.args, self.kwargs, self.mutable, self.key = name, args, kwargs or {}, mutable, key
        self.given, self.made = tensors_in((args, kwargs)), tensors_in(out)
        self.tensor_flops: Any = 0


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested lists, tuples and mappings, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for part in inner for tensor in tensors_in(part)]


class Watch(TorchDispatchMode):
    """Sees every operator that is no view, in order, with the module that runs it; follows storages to their end."""

    def __init__(self, session: Session, tell: Callable[[Seen], None]) -> None:
        super().__init__()
        self.session, self.tell = session, tell
        self.known = Known(session.fakes)
        self.storages: list[Storage] = []
        self.path: list[str] = [""]
        self.operator, self.count, self.on = "", 0, True
        self._known: dict[int, tuple[int, StorageWeakRef]] = {}
        self._mortal: dict[int, None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def index(self, tensor: torch.Tensor, **given: Any) -> int:
        """The number of the storage of a tensor, which is entered where it is new."""
        storage = tensor.untyped_storage()
        known = self._known.get(storage._cdata)
        if known is not None and not known[1].expired():
            return known[0]
        values: dict[str, Any] = {"name": f"t{len(self.storages)}", "role": "activation", "born": self.count} | given
        size = prod(map(self.session.reader.size, tensor.shape))
        bits = 0 if tensor.dtype == self.session.dtype else tensor.element_size() * 8
        made = Storage(elements=size, bits=bits, path=self.path[-1], **values)
        self.storages.append(made)
        if made.role != "weight" and not made.buffer:  # those are held by whoever runs the module
            self._mortal[storage._cdata] = None
        self._known[storage._cdata] = (len(self.storages) - 1, StorageWeakRef(storage))
        return len(self.storages) - 1

    def alias(self, tensor: torch.Tensor, index: int) -> None:
        """Take the storage of a tensor for one that is known."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = (index, StorageWeakRef(storage))
        self._mortal[storage._cdata] = None

    def make(self, name: str, elements: Size) -> int:
        """A storage that a kernel keeps on chip."""
        index, now = len(self.storages), self.count
        self.storages.append(Storage(f"{name}{index}", "activation", 0, elements, now, self.path[-1], now))
        return index

    def bury(self) -> None:
        """Note which storages are gone."""
        expired = torch.UntypedStorage._expired  # StorageWeakRef's own, without what it calls in between
        for key in [key for key in self._mortal if expired(self._known[key][1].cdata)]:
            del self._mortal[key]
            gone = self.storages[self._known.pop(key)[0]]
            if gone.role == "activation":
                gone.dies = self.count - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func.overloadpacket.__name__), kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        key = self.known.key(func, args, kwargs)
        self.operator = "item" if name == "_local_scalar_dense" else name
        if not self.on:
            return self.known.run(func, args, kwargs, key)
        self.bury()
        out = self.known.run(func, args, kwargs, key)
        seen = Seen(name, args, kwargs, out, func._schema.is_mutable, key)
        if not seen.made or func.is_view:
            return out
        owners = {t.untyped_storage()._cdata for t in seen.given}
        if seen.mutable or any(t.untyped_storage()._cdata not in owners for t in seen.made):
            if func._overloadpacket in flop_registry:
                seen.tensor_flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            self.tell(seen)
        return out

    def attention(self, query: Any, key: Any, value: Any, attn_mask: Any = None, *others: Any, **named: Any) -> Any:
        """Scaled dot product attention as one operator; its result lies as flash kernels write it."""
        order = (*range(query.dim() - 3), query.dim() - 2, query.dim() - 3) if query.dim() > 3 else ()
        shape = [*query.shape[:-1], value.shape[-1]]
        out = query.new_empty([shape[axis] for axis in (*order, query.dim() - 1)] if order else shape)
        out = out.transpose(-2, -3) if order else out
        if self.on:
            self.bury()
            mask = [] if attn_mask is None else [attn_mask]
            self.tell(Seen("attention", (query, key, value, *mask), {}, out, False))
        return out


def filled(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Within, the module has these parameters and buffers, by name."""
    return _reparametrize_module(module, dict(tensors), tie_weights=True)


@contextmanager
def running(watch: Watch, paths: Mapping[int, str]) -> Iterator[None]:
    """Everything that a run needs around it; `paths` are those of modules by identity."""

    def entered(module: Any, inputs: Any) -> None:
        watch.path.append(paths.get(id(module), watch.path[-1]))

    def left(module: Any, inputs: Any, output: Any) -> None:
        watch.path.pop()

    functional, fast = torch.nn.functional, torch.backends.mha.get_fastpath_enabled()
    real = functional.scaled_dot_product_attention
    with ExitStack() as stack:
        for hook in (register_module_forward_pre_hook(entered), register_module_forward_hook(left)):
            stack.callback(hook.remove)
        stack.callback(setattr, functional, "scaled_dot_product_attention", real)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        functional.scaled_dot_product_attention = watch.attention
        torch.backends.mha.set_fastpath_enabled(False)
        aware = nullcontext() if watch.session.concrete else enable_python_dispatcher()  # kernels that know symbols
        for context in (torch.no_grad(), torch.device(watch.session.device), watch.session.mode, aware, watch):
            stack.enter_context(context)
        yield


def explained(error: Exception, watch: Watch, name: str) -> InputError:
    """Why a run ended early, as one sentence with the module and the operator."""
    where = ".".join(part for part in (name, watch.path[-1]) if part)
    if isinstance(error, InputError):
        return InputError(f"{where}: operator {watch.operator!r}: {error}")
    if isinstance(error, DATA_DEPENDENT):
        return InputError(
            f"{where}: operator {watch.operator!r} depends on the values of tensors, not on their sizes alone, so it "
            f"cannot be traced"
        )
    if isinstance(error, NotImplementedError) and "counting rule" in str(error):
        return InputError(f"{where}: {error}")
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"{where}: cannot be run on inputs of these sizes, behind operator {watch.operator!r}: {reason}")
