"""The vendor's own classes, from the Python files of a local copy of the model's repository.

Files are executed only because the user named their folder. What they import and this machine
lacks (flash_attn, easydict, names that newer transformers dropped) is replaced by stand-ins.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers  # noqa: F401 (before any stand-in, or its own imports would see them)

from modelmeter.errors import InputError
from modelmeter.validate.case import Case


class AttributeDict(dict[str, Any]):
    """A dict whose keys are attributes too, as easydict and addict have it."""

    __getattr__ = dict.__getitem__


class _StandIn:
    """Takes the place of whatever cannot be imported; as a decorator it leaves its object alone."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments else self

    def __getattr__(self, name: str) -> Any:
        return _StandIn()


class _Lenient(ModuleType):
    """A module whose missing names are stand-ins."""

    def __init__(self, name: str, real: Any = None) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("EasyDict", "Dict", "ADict"):
            return AttributeDict
        return getattr(self.__dict__["_real"], name, None) or type(name, (_StandIn,), {})


class _Folder:
    """The Python files of a folder, each executed once, on demand."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.stem: path for path in sorted(folder.rglob("*.py"), reverse=True)}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def load(self, stem: str) -> dict[str, Any]:
        if stem not in self.loaded:
            scope = self.loaded[stem] = {"__name__": f"vendor_{stem}", "__file__": str(self.files[stem])}
            scope["__builtins__"] = {**vars(builtins), "__import__": self._import}
            try:
                exec(compile(self.files[stem].read_text(encoding="utf-8"), self.files[stem], "exec"), scope)
            except Exception as error:  # whatever a stranger's file raises is for the user to read
                self.failed[stem] = f"{type(error).__name__}: {error}"
        return self.loaded[stem]

    def _import(self, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        """A module of this machine, else the folder's file of this name, else stand-ins; the folder's own come first."""
        stem = name.rpartition(".")[2]
        if stem not in self.files or not (level or name.partition(".")[0] in self.files):
            try:
                real = __import__(name, scope, local, wanted or (), level)
                return _Lenient(name, real) if wanted and not name.startswith("torch") else real
            except ImportError:
                if stem not in self.files:
                    return _Lenient(name)
        module = _Lenient(name)
        module.__dict__.update({k: v for k, v in self.load(stem).items() if not k.startswith("__")})
        return module

    def find(self, name: str) -> Any:
        """The class of this name in any file that mentions it, else None."""
        files = (s for s, path in self.files.items() if f"class {name}(" in path.read_text("utf-8", errors="replace"))
        return next((found for file in files if isinstance(found := self.load(file).get(name), type)), None)


def found_cases(folder: str, cases: Iterable[Case]) -> tuple[list[Case], list[str]]:
    """The cases of the classes that the folder holds, and a line for each that it lacks; `make` takes the class.

    Raises InputError if the folder does not exist or has no Python files.
    """
    if not Path(folder).is_dir() or not any(Path(folder).rglob("*.py")):
        raise InputError(f"--vendor {folder!r} is not a folder with the vendor's Python files")
    files, found, lacking = _Folder(Path(folder)), [], []
    for case in cases:
        kind = files.find(case.layer)
        if kind is None:
            why = "".join(f"; {stem}.py failed with {reason}" for stem, reason in files.failed.items())
            lacking.append(f"vendor class {case.layer}: not in {folder}{why}")
            continue
        one = replace(case, make=partial(case.make, kind), reference=kind.__module__)
        try:
            with torch.device("meta"):
                one.build()
        except Exception as error:  # a class that needs more than this machine has is listed, not hidden
            lacking.append(f"vendor class {case.layer}: cannot be constructed here ({type(error).__name__}: {error})")
        else:
            found.append(one)
    return found, lacking
