"""A module run once: weights, buffers and inputs entered, the run's records, its domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from modelmeter.tracing.capture import Session, explained, filled, running, tensors_in
from modelmeter.tracing.operators import Recorder
from modelmeter.tracing.records import Run

Call = Callable[[torch.nn.Module], Any]
"""What runs a module."""


class Tracer:
    """A module on fake tensors, ready to be run once with symbolic sizes.

    `session` makes sizes and inputs; `quietly` runs what is not recorded, `run` what is.
    """

    def __init__(self, module: torch.nn.Module, name: str = "", *, concrete: bool = False) -> None:
        first = next((p for p in module.parameters() if p.is_floating_point()), None)
        loose = (value for part in module.modules() for value in vars(part).values())
        own = first is not None and any(isinstance(value, torch.Tensor) for value in loose)  # not to be replaced
        device = first.device if own and first is not None else torch.device("meta")
        self.module, self.name = module, name or type(module).__name__
        dtype = first.dtype if first is not None else torch.get_default_dtype()
        self.session = Session(device, dtype, concrete=concrete)
        self.recorder = Recorder(self.session)
        self.paths = {id(m): path for path, m in module.named_modules()}
        given = dict(module.named_parameters(remove_duplicate=False))
        self.fakes = self.session.fake(given | dict(module.named_buffers(remove_duplicate=False)))
        self.weights: dict[str, int] = {}
        for path, tensor in self.fakes.items():
            weight = path in given
            owner, _, local = path.rpartition(".")
            full = f"{owner}.{'W_' * weight}{local}".lstrip(".")
            known = {"role": "weight"} if weight else {"buffer": True}
            index = self.recorder.enter(full, tensor, **known)
            if weight:
                self.weights.setdefault(full, index)
        self.weights = {n: i for n, i in self.weights.items() if self.recorder.watch.storages[i].name == n}

    def input(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Declare a tensor an input."""
        self.recorder.enter(name, tensor, input=True)
        return tensor

    def call(self, run: Call, record: bool = True) -> Any:
        """Run the module. Raises InputError where its code cannot be run on sizes alone."""
        watch = self.recorder.watch
        watch.on = record
        try:
            with running(watch, self.paths), filled(self.module, self.fakes):
                return run(self.module)
        except Exception as error:  # whatever a stranger's module raises is for the user to read
            raise explained(error, watch, self.name) from error

    def result(self, sizes: Iterable[str]) -> Run:
        """What was recorded. Raises InputError for a domain that cannot be said in sizes."""
        self.recorder.watch.bury()
        modules = dict(self.module.named_modules())
        lists = [p for p, m in modules.items() if isinstance(m, (torch.nn.ModuleList, torch.nn.Sequential))]
        kinds = {path: type(m).__name__ for path, m in modules.items()}
        return Run(tuple(sizes), self.recorder.records, self.recorder.watch.storages,
                   list(self.session.conditions()), kinds, lists, self.weights)  # fmt: skip


def taint(recorder: Recorder, tensors: Any) -> None:
    """Take tensors for ones that depend on the inputs."""
    for tensor in tensors_in(tensors):
        recorder.reach(tensor)
