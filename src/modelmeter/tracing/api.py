"""`trace`: a module becomes a model of traced stages; `save` writes it, `target` imports what a command line names."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modelmeter.errors import InputError, choose
from modelmeter.models.trace_json import FORMAT, VERSION, checked_trace
from modelmeter.models.traced import TracedModel
from modelmeter.sizes import Expr, Size, evaluated, symbol
from modelmeter.tracing import causal
from modelmeter.tracing.proof import proven
from modelmeter.tracing.records import Run
from modelmeter.tracing.repeats import folded
from modelmeter.tracing.run import Tracer
from modelmeter.tracing.written import piece

HINTS = (5, 11, 23, 37, 59, 83, 127, 179)
"""Values of the sizes during the run: odd and distinct, so that none is taken for another or for a constant."""
SIDES = (227, 453)
"""Those of the last two axes of an image."""
_INPUT = re.compile(r"\s*([A-Za-z_]\w*)(?::(\w+))?\[([\w\s]*)\]\s*")
_KINDS = {"int64": torch.int64, "int32": torch.int32, "fp32": torch.float32, "bf16": torch.bfloat16, "bool": torch.bool,
          "fp16": torch.float16, "fp64": torch.float64}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A tensor that a module is given: its axes are numbers, names or expressions of named sizes.

    Without a format it has that of the module's parameters.

    >>> Input.of("ids:int64[b s]").axes, Input.of("x[b 3 u v]").shape({"b": 2, "u": 5, "v": 7})
    ((b, s), [2, 3, 5, 7])
    """

    name: str
    axes: tuple[Size, ...]
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, text: str) -> Input:
        """An input as text: `x[b 3 u v]`, `ids:int64[b s]`."""
        found = _INPUT.fullmatch(text)
        if not found:
            raise InputError(f"an input is NAME[AXES], such as 'x[b 3 u v]' or 'ids:int64[b s]', not {text!r}")
        name, kind, axes = found.groups()
        if kind is not None and kind not in _KINDS:
            raise InputError(f"unknown format {kind!r} of input {text!r}; valid: {', '.join(_KINDS)}")
        sizes = (int(axis) if axis.isdigit() else symbol(axis) for axis in axes.split())
        return cls(name, tuple(sizes), _KINDS.get(kind or ""))

    @property
    def names(self) -> list[str]:
        """The named sizes of its axes, in order."""
        return [name for axis in self.axes if isinstance(axis, Expr) for name in axis.names]

    def shape(self, sizes: Mapping[str, Any]) -> list[Any]:
        """Its shape where the named sizes have these values, numbers of torch's included."""
        return list(evaluated(self.axes, sizes))


def trace(
    module: torch.nn.Module, *inputs: str | Input, hints: Mapping[str, int] | None = None, name: str | None = None,
    method: Callable[..., Any] | None = None,
) -> TracedModel:  # fmt: skip
    """A model from a module, run once without data. `inputs` are its tensors with named axes: "x[b 3 u v]".

    A causal language model of transformers needs none: it has the stages prefill and decode. `hints` are values that
    the sizes have in the run, which decide what code asks of them; `method(module, *inputs)` calls something else than
    `forward`. Raises InputError for a module that cannot be traced, naming module and operator.
    """
    called = name or type(module).__name__
    given = [one if isinstance(one, Input) else Input.of(one) for one in inputs]
    if not given and not hasattr(module, "get_output_embeddings"):
        raise InputError(f"{called} is no causal language model: name its inputs, such as 'x[b 3 u v]'")
    at = dict(hints or {})
    stages = _stage(module, given, at, called, method) if given else _language(module, at, called)
    notes = list(dict.fromkeys(note for _, runs in stages for run in runs for note in run.notes))
    content = {
        "format": FORMAT, "version": VERSION, "name": called, "notes": notes,
        "stages": [{"name": stage, "sizes": list(runs[0].sizes), "pieces": [piece(folded(r)) for r in runs]}
                   for stage, runs in stages],
    }  # fmt: skip
    return TracedModel(called, checked_trace(content))


def _language(module: Any, hints: Mapping[str, int], name: str) -> list[tuple[str, list[Run]]]:
    values = _with_hints({"b": HINTS[0], "s": HINTS[1], "p": HINTS[2]}, hints)
    prompt, step = ({axis: values[axis] for axis in axes} for axes in ("bs", "bp"))
    with evaluating(module):
        first = proven(name, partial(causal.prefill, module, name), prompt)
        after = proven(name, partial(causal.decode, module, name), step, lambda at: {"b": at["b"], "t": at["p"] + 1})
    return [("prefill", [first]), ("decode", [after])]


def _stage(
    module: Any, inputs: Sequence[Input], hints: Mapping[str, int], name: str, method: Callable[..., Any] | None
) -> list[tuple[str, list[Run]]]:  # fmt: skip
    """One stage whose sizes are the named axes."""

    def make(values: Mapping[str, int], *, concrete: bool = False) -> Run:
        tracer = Tracer(module, name, concrete=concrete)
        sizes = {axis: tracer.session.size(axis, value) for axis, value in values.items()}
        tensors = [_tensor(tracer, given, sizes) for given in inputs]
        with causal.known_to_transformers(tracer):
            out = tracer.call(lambda m: method(m, *tensors) if method else m(*tensors))
        run = tracer.result(tuple(sizes))
        del out
        return run

    causal.set_experts(module)
    with evaluating(module):
        return [("forward", [proven(name, make, _with_hints(_hints(inputs), hints))])]


def _with_hints(values: Mapping[str, int], hints: Mapping[str, int]) -> dict[str, int]:
    """Values of sizes, those of the user before ours. Raises InputError for one that is no size."""
    for name in hints:
        choose("hint", name, values)
    return dict(values) | dict(hints)


def _hints(inputs: Sequence[Input]) -> dict[str, int]:
    """Values of the named sizes: large ones for the sides of images."""
    found: dict[str, int] = {}
    for given in inputs:
        sides = [str(axis) for axis in given.axes[-2:]] if len(given.axes) > 3 else []
        for name in given.names:
            found.setdefault(name, SIDES[sides.index(name)] if name in sides else HINTS[len(found)])
    return found


def _tensor(tracer: Tracer, given: Input, sizes: Mapping[str, Any]) -> torch.Tensor:
    made = tracer.session.tensor(given.shape(sizes), given.dtype or tracer.session.dtype)
    return tracer.input(given.name, made)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """The module as it infers, and back."""
    trained = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def save(model: TracedModel, path: str | Path) -> None:
    """Write a traced model as JSON."""
    try:
        Path(path).write_text(json.dumps(model.content), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def target(text: str, config: str | None = None) -> torch.nn.Module:
    """The module that "package.module:Name" names, made on the meta device; `config` is a config.json of transformers.

    Raises InputError if it cannot be imported or made.
    """
    where, colon, name = text.partition(":")
    if not colon or not name:
        raise InputError(f"{text!r} is not MODULE:NAME, such as transformers:LlamaForCausalLM or mypackage.net:Net")
    try:
        kind = getattr(importlib.import_module(where), name)
    except Exception as error:  # whatever a stranger's file raises is for the user to read
        raise InputError(f"{text}: cannot be imported: {type(error).__name__}: {_first(error)}") from None
    try:
        with torch.device("meta"):
            made = _configured(kind, config) if config else kind() if callable(kind) else kind
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{text}: cannot be made: {type(error).__name__}: {_first(error)}") from None
    if not isinstance(made, torch.nn.Module):
        raise InputError(f"{text} gives no torch module, but {type(made).__name__}")
    return made


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _configured(kind: Any, config: str) -> Any:
    """A module of transformers from its config.json, in bf16."""
    from transformers import AutoConfig

    from modelmeter.models.config_json import read_config

    if not hasattr(kind, "_from_config"):
        raise InputError(f"{kind.__name__} takes no config.json")
    fields = read_config(config)
    kept = getattr(kind, "config_class", None)
    made = kept.from_dict(fields) if kept is not None else AutoConfig.for_model(**fields)
    return kind._from_config(made, dtype=torch.bfloat16)
