"""What one run of a module leaves: operators with their operands, storages with their lives. Sizes are expressions.

`capture.py` writes it, `repeats.py` folds what repeats, `written.py` makes it data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from modelmeter.sizes import Size
from modelmeter.tracing.symbols import Condition


@dataclass
class Storage:
    """A tensor in memory, whatever views there are of it.

    `bits` is 0 where it has the format of the module's parameters. It lives from the end of operator `born` (-1: before
    the first) to the end of operator `dies` (None: to the end of the run); `path` is where it was made.
    """

    name: str
    role: str
    bits: int
    elements: Size
    born: int
    path: str
    dies: int | None = None
    input: bool = False
    buffer: bool = False


class Operand(NamedTuple):
    """What an operator reads or writes of a storage: the sizes of its axes by letter, elements that are touched."""

    storage: int
    axes: str
    touched: Size


@dataclass(frozen=True)
class Record:
    """One operator that launches a kernel, by the kinds of graph/ops.py; `axes` are the sizes of its letters.

    The first `factors` reads are multiplied. `over` are loops that are not those of the product; `label` is the
    composite of an operator that is one kernel with others (kind:number). `number` is its place in the run.
    """

    name: str
    kind: str
    path: str
    reads: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    axes: Mapping[str, Size]
    factors: int = 1
    tensor: Size = 0
    cuda: Size = 0
    label: str = ""
    over: str = ""
    grad: bool = True
    times: int = 1
    loop: str = ""
    number: int = 0


@dataclass
class Run:
    """One run of a module: `sizes` are its named axes, `conditions` what must hold for the records to be true.

    `classes` are the class names of modules by path, `lists` the paths of lists of modules, `weights` the storages of
    parameters by name, `loops` what enters a repeated module and leaves it for the next round, by path.
    """

    sizes: tuple[str, ...]
    records: list[Record]
    storages: list[Storage]
    conditions: list[Condition]
    classes: dict[str, str]
    lists: list[str]
    weights: dict[str, int]
    loops: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
