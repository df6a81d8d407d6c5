"""Placements: which part of a model is at which place, a device or a process, as data.

A place holds some of `vision`, `embedding`, `layers:N` (the next N of the decoder's), `layers` (those that the others
leave) and `head` (with the norm before it); `decoder` is the last three of these. A placement is a name of
`configs/placement/`, a YAML file, or a text such as `layers:6+6`. What follows from it: `splits.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.folders import config_dir, config_names
from modelmeter.models.model import BaseModel
from modelmeter.models.parts import Homes, cut, decoder_of, in_ranges, layers_of, vision_of
from modelmeter.programs.formats import format_of
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.runtime import Runtime

PARTS = ("vision", "embedding", "layers", "head")
TEXTS = ("vision+decoder", "layers:A+B (how many layers each device has, such as layers:6+6)", "vision+layers:A+B")
"""What a placement may be beside a name: as many devices as there are parts and numbers."""
_LAYERS = re.compile(r"(vision\+)?layers:(\d+(?:\+\d+)*)")


@final
@dataclass(frozen=True)
class Place:
    """A device or a process: its name, what it holds, what is not as the workload has it.

    Raises InputError for a part, a runtime or a precision that is none.
    """

    name: str
    holds: str
    runtime: str | Runtime | None = None
    precision: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.holds, str) or not self.holds.split():
            raise InputError(f"place {self.name!r} must hold some of {', '.join(PARTS)} or decoder, not {self.holds!r}")
        for part, _, many in (word.partition(":") for word in self.holds.split()):
            choose(f"part of place {self.name!r}:", part, (*PARTS, "decoder"))
            if many and (part != "layers" or not many.isdigit() or not int(many)):
                raise InputError(f"place {self.name!r}: {part}:{many} is no number of layers, such as layers:6")
        if self.runtime is not None:
            Runtime.of(self.runtime)
        if not isinstance(self.precision, Mapping):
            raise InputError(f"place {self.name!r}: precision must map weights, activations or kv to a format")
        Precision.of(self.precision)

    @property
    def parts(self) -> dict[str, int | None]:
        """What it holds, and of layers how many (None: the rest)."""
        words = [word.partition(":") for word in self.holds.replace("decoder", "embedding layers head").split()]
        return {part: int(many) if many else None for part, _, many in words}


@final
@dataclass(frozen=True)
class Placement:
    """Places in the order of the layers that they hold; `wire` is the format of what crosses, if not as it is stored.

    >>> [place.holds for place in Placement.of("vision+layers:6+6").places]
    ['vision', 'embedding layers:6', 'layers:6 head']
    """

    name: str
    places: tuple[Place, ...]
    wire: str | float | None = None

    def __post_init__(self) -> None:
        wire_bits(self.wire)
        names = [place.name for place in self.places]
        if not names or len(set(names)) < len(names):
            raise InputError(f"placement {self.name!r} must have places of different names, not {', '.join(names)}")

    @classmethod
    def of(cls, value: Any) -> Placement:
        """A placement itself, or one by its name, its file or its text. Raises InputError."""
        if isinstance(value, Placement):
            return value
        text = str(value)
        if text in config_names("placement"):
            return _read(config_dir() / "placement" / f"{text}.yaml")
        if Path(text).suffix in (".yaml", ".yml"):
            return _read(Path(text))
        holds = ["vision", "decoder"] if text == "vision+decoder" else _holds(text)
        names = holds if text == "vision+decoder" else [f"device {number}" for number in range(len(holds))]
        return cls(text, tuple(map(Place, names, holds)))

    def on(self, model: BaseModel) -> tuple[BaseModel, Homes, dict[str, str]]:
        """The model cut as it is placed, the home of each op, and what each place holds in words.

        Raises InputError where a part is at no place or at two, or the numbers of layers are not the model's.
        """
        decoder = decoder_of(model)
        counts, homes = self._counts(model, layers_of(decoder)), self._homes(model)
        placed = cut(model, tuple(counts.values()))
        names = tuple(counts)
        stacks = tuple(names[number] for number, _ in in_ranges(decoder.layers, tuple(counts.values())))
        vision = tuple((stage, homes["vision"]) for stage in vision_of(model))
        found = Homes(vision, homes["embedding"], stacks, homes["head"])
        return placed, found, {place.name: _words(place, counts, bool(vision)) for place in self.places}

    def _counts(self, model: BaseModel, layers: int) -> dict[str, int]:
        """How many layers each place has that has some."""
        given = {place.name: place.parts["layers"] for place in self.places if "layers" in place.parts}
        left = layers - sum(many for many in given.values() if many is not None)
        rest = [name for name, many in given.items() if many is None]
        if len(rest) > 1 or (left < 1 if rest else left):
            told = " and ".join("the rest" if many is None else str(many) for many in given.values())
            raise InputError(
                f"placement {self.name!r} has {told} decoder layers, and {model.name} has {layers}; for two devices: "
                f"layers:{(layers + 1) // 2}+{layers // 2}"
            )
        return {name: left if many is None else many for name, many in given.items()}

    def _homes(self, model: BaseModel) -> dict[str, str]:
        """The place of each part but layers."""
        sees = vision_of(model)
        found = dict[str, str]()
        for part in PARTS:
            at = [place.name for place in self.places if part in place.parts]
            if part != "layers" and len(at) != 1 and (part != "vision" or sees):
                where = f"at {' and '.join(map(repr, at))}" if at else "at no place"
                raise InputError(f"placement {self.name!r} has the {part} of {model.name} {where}; it must be at one")
            found |= {part: at[0]} if at else {}
        for place in self.places:
            if not sees and set(place.parts) == {"vision"}:
                half = layers_of(decoder_of(model)) // 2
                raise InputError(
                    f"{model.name} has no vision, so place {place.name!r} of placement {self.name!r} would hold "
                    f"nothing; place its layers: layers:A+B, the A first ones, such as {half}, at one device"
                )
        return found


def wire_bits(wire: str | float | None) -> Fraction | None:
    """Bits an element of what crosses; None: as it is stored. Raises InputError for a format with blocks or scales."""
    found = None if wire is None else format_of("wire", wire)
    if found is not None and found.shaped:
        raise InputError(f"wire must be a format without blocks or scales, such as fp32, bf16 or fp8, not {wire!r}")
    return found.bits if found is not None else None


def _holds(text: str) -> list[str]:
    """What each device holds by a text of numbers of layers. Raises InputError for another text."""
    found = _LAYERS.fullmatch(text)
    if found is None:
        valid = ", ".join((*config_names("placement"), *TEXTS))
        raise InputError(f"unknown placement {text!r}; valid: {valid}, or a YAML file")
    holds = [f"layers:{many}" for many in found[2].split("+")]
    holds[0] = f"embedding {holds[0]}"
    holds[-1] = f"{holds[-1]} head"
    return ["vision", *holds] if found[1] else [f"vision {holds[0]}", *holds[1:]]


def _words(place: Place, counts: Mapping[str, int], sees: bool) -> str:
    """What a place holds, its layers by number."""
    parts = [part for part in PARTS if part in place.parts and (sees or part != "vision")]
    names = list(counts)
    if len(names) == 1 and parts[-3:] == list(PARTS[1:]):
        return ", ".join([*parts[:-3], "decoder"])
    first = sum(counts[name] for name in names[: names.index(place.name)]) if place.name in names else 0
    layers = f"layers {first} to {first + counts.get(place.name, 0) - 1}"
    return ", ".join(layers if part == "layers" else part for part in parts)


def _read(path: Path) -> Placement:
    """A placement of a YAML file. Raises InputError for one that cannot be read or has other keys."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"placement {str(path)!r} cannot be read: {reason}") from None
    places = values.get("places") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, dict) for place in places.values()):
        raise InputError(f"placement {str(path)!r} must have `places`, each with what it `holds`")
    for key in values:
        choose(f"key of placement {path.stem!r}:", str(key), ("places", "wire"))
    for name, place in places.items():
        for key in place:
            choose(f"key of place {name!r}:", str(key), ("holds", "runtime", "precision"))
    found = (Place(str(name), **{"holds": ""} | place) for name, place in places.items())
    return Placement(path.stem, tuple(found), values.get("wire"))
