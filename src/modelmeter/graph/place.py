"""Where an equation stands: the placed layer, the sizes of its axes, the names of its tensors.

`Sizes` is what a layer's `ops` receives. An axis is a field of the layer, a workload size that the layer declares
or bound in its `ops`; what the layers around it have is out of sight. Next: `ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

from modelmeter.errors import InputError
from modelmeter.graph.axes import AXES
from modelmeter.sizes import Expr, Size, below, evaluated, minimum, never_negative, ratio, summed, symbol

CAUSAL = ("full", "exact")
LATENT = ("expanded", "absorbed")


class Node(NamedTuple):
    """A placed layer: its path, its class, how often it runs in all, the classes of the layers `around` it.

    `loop` is the path of the innermost repeated layer around it; `held` are the names that enter and leave that one
    (the caller holds one while the next is made), `again` is 1 if there is a second round. `serial` is its number.
    """

    path: str
    layer: str
    times: Size = 1
    loop: str = ""
    held: tuple[str, str] = ("", "")
    again: Size = 0
    serial: int = 0
    around: tuple[str, ...] = ()


def unknown(name: str) -> str:
    """No format."""
    return ""


@dataclass
class Root:
    """What all `placed` layers of a graph share: how pairs are counted, `buffers`, inputs that they bring along.

    `choices` are those of a count that some layers alone have; `chosen` are those that one had.
    `requirements` are sizes that must not be negative, by the sentence that says so (its {names} are sizes). `places`
    are where the rounds of a repeated layer stand among the layers of its model, by its path, if not one behind the
    other. `vendor` is the architecture of a decoder, as its config.json calls it, if it says so; `cached` tells
    the format of a tensor of the cache by its name, where a count has formats.
    """

    causal: str = "full"
    choices: Mapping[str, str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    requirements: dict[str, Size] = field(default_factory=dict)
    places: dict[str, tuple[int, ...]] = field(default_factory=dict)
    vendor: str = ""
    cached: Callable[[str], str] = unknown
    placed: int = 0

    def choice(self, name: str) -> str:
        """What a count chose, which its results will say."""
        return self.chosen.setdefault(name, self.choices[name])


@dataclass(eq=False)
class Sizes:
    """Axis sizes and the place in the model; `n.s` is the size of axis s, `n.bind(Q=...)` adds derived axes.

    `bound` are the axes of the workload and those that the layer bound itself.
    """

    axes: dict[str, Size]
    node: Node = field(default=Node("", ""))
    root: Root = field(default_factory=Root)
    bound: frozenset[str] = frozenset()
    _names: dict[str, tuple[str, str]] = field(default_factory=dict)
    _elements: dict[tuple[str, ...], Size] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name in self.axes.keys() & _TAKEN:
            raise InputError(f"{self.node.layer}: an axis cannot be called {name!r}, as `n.{name}` is something else")

    def __getattr__(self, axis: str) -> Size:
        if axis.startswith("_"):
            raise AttributeError(axis)
        return self._size(axis)

    def _size(self, axis: str, equation: str = "") -> Size:
        if axis in self.axes:
            return self.axes[axis]
        meaning = f" ({AXES[axis]})" if axis in AXES else ""
        where = f" of equation {equation!r}" if equation else ""
        raise InputError(
            f"{self.node.layer or 'the caller'}: axis {axis!r}{meaning}{where} is no field of the layer, no size that "
            f"it declares and not bound there; there are: {', '.join(sorted(self.axes))}"
        )

    def bind(self, **axes: Size) -> Sizes:
        """The same place with further axes."""
        return replace(self, axes=self.axes | axes, bound=self.bound | axes.keys())

    def pairs(self, s: Size, t: Size, window: Size | None = None) -> Size:
        """Query-key pairs of s queries, the last of t positions, each with the `window` positions up to its own.

        Counted full, every query sees every key that any of them sees; counted exactly, its own alone.
        """
        if self.root.causal == "full":
            return s * (t if window is None else minimum(t, window + s - 1))
        if window is None:
            return ratio(s * (2 * t - s + 1), 2)
        return summed(minimum(symbol("~position"), window), "~position", t - s + 1, t)

    def require(self, size: Size, sentence: str) -> None:
        """Refuse every workload at which this size is negative, with a sentence whose {names} are sizes."""
        if not never_negative(size):
            self.root.requirements[f"{self.node.layer}: {sentence}"] = size

    def elements(self, axes: tuple[str, ...], equation: str = "") -> Size:
        """The product of axes."""
        if axes not in self._elements:
            self._elements[axes] = prod(self._size(axis, equation) for axis in axes)
        return self._elements[axes]

    def resolve(self, local: str) -> tuple[str, str]:
        """The owning layer's path and the full name of a tensor."""
        path = self.node.path
        return self._names.setdefault(local, (path, f"{path}.{local}" if path else local))

    def inside(
        self, scope: str, layer: str, workload: dict[str, Size], fields: dict[str, Size], names: Mapping[str, str],
        times: Size,
    ) -> Sizes:  # fmt: skip
        """The place of a layer under `scope`; `names` maps its tensors to the ones of this place."""
        (known,) = evaluated([times], {}) if isinstance(times, Expr) and not times.names else (times,)
        if not isinstance(known, int) and below(known, 2):
            raise InputError(f"{layer}: an array of rounds needs two or more everywhere; count one round by itself")
        self.root.placed += 1
        outer, inner = self.node, {local: self.resolve(name) for local, name in names.items()}
        path, around = ".".join(part for part in (outer.path, scope) if part), (*outer.around, outer.layer)
        node = outer._replace(path=path, layer=layer, times=outer.times * times, serial=self.root.placed, around=around)
        if not isinstance(times, int) or times != 1:  # a repeated layer
            ends = (inner["x"][1], inner["y"][1]) if "x" in inner and "y" in inner else ("", "")
            node = node._replace(loop=path, held=ends, again=minimum(times - 1, 1))
        return Sizes(workload | fields, node, self.root, frozenset(workload), inner)


_TAKEN = {"axes", "node", "root", "bound", *(name for name in dir(Sizes) if not name.startswith("_"))}
"""Names that an axis cannot have."""
