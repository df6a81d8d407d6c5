"""Settings: every key declared once, with what it takes and what it means. YAML of configs/ has the default values.

The command line, the configuration and calls from Python check values against these declarations. What a sweep
takes beyond these stands in its own module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError, choose, unknown
from modelmeter.folders import PARTS, config_names
from modelmeter.programs.counting import Counting
from modelmeter.programs.precision import Precision
from modelmeter.runtimes.parallel import Parallel
from modelmeter.sizes import as_size
from modelmeter.workload import parse_pair


def shown(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    words: dict[Any, str] = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Kind:
    """What a value must be: `check(key, value)` returns it as it is used or raises InputError.

    `wanted` completes "one or more ...", `of` is the type of one of several; with `lists` it judges a list itself.
    """

    check: Callable[[str, Any], Any]
    wanted: Callable[[], str] = lambda: "values"
    of: type | tuple[type, ...] = object
    lists: bool = False


@dataclass(frozen=True)
class Setting:
    """A key: its name, what it takes, its help; `several` values or null only where it says so."""

    name: str
    kind: Kind
    help: str
    several: bool = False
    nullable: bool = False

    def check(self, value: Any) -> Any:
        """The value as it is used, a list where there may be several; raises InputError."""
        if value is None and self.nullable:
            return None
        if self.several:
            given = value if isinstance(value, list) else [value]
            typed = all(isinstance(one, self.kind.of) for one in given)
            found = [self.kind.check(self.name, one) for one in given] if typed else []
            if not found or len(set(found)) < len(found):
                raise InputError(f"{self.name} must be one or more {self.kind.wanted()}, each once, not {value!r}")
            return found
        if isinstance(value, list) and not self.kind.lists:
            how = f"run several with --multirun {self.name}=A,B"
            raise InputError(f"{self.name} must be one value, not {value!r}; {how}")
        return self.kind.check(self.name, value)


def checked(settings: Iterable[Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of these settings, each as it is used. Raises InputError for one that is missing or wrong."""
    wholes = [setting for setting in settings if "." not in setting.name]  # a part is checked with its whole
    for name in (setting.name for setting in wholes if setting.name not in values):
        raise InputError(f"key {name!r} is missing from the configuration")
    return {setting.name: setting.check(values[setting.name]) for setting in wholes}


def joined(*settings: Setting) -> tuple[Setting, ...]:
    """Settings by name, a later one in the place of an earlier one."""
    return tuple({setting.name: setting for setting in settings}.values())


def whole(least: int = 1) -> Kind:
    """A whole number."""
    return Kind(lambda key, value: as_size(key, value, least=least), lambda: "whole numbers", (int, float, str))


def one_of(names: Callable[[], Iterable[str]]) -> Kind:
    """One of some names."""
    return Kind(lambda key, value: choose(key, str(value), names()), lambda: f"of {', '.join(names())}", str)


def entry(group: str) -> Kind:
    """A name of a folder of configs, or the path of a user's own YAML file."""

    def check(key: str, name: str) -> str:
        if name not in config_names(group) and Path(name).suffix not in (".yaml", ".yml"):
            raise unknown(group, name, config_names(group))
        return name

    return Kind(check, lambda: f"of {', '.join(config_names(group))} or YAML files", str)


def pair(order: str) -> Kind:
    """Two whole numbers, as "1700x2200"."""
    return Kind(lambda key, value: parse_pair(key, value, order), lambda: order.partition(" ")[0])


def of_type(kind: type, wanted: str) -> Kind:
    """A value of a type that is not empty."""

    def check(key: str, value: Any) -> Any:
        if not isinstance(value, kind) or value == "":
            raise InputError(f"{key} must be {wanted}, not {value!r}")
        return value

    return Kind(check, lists=True)


def _precision(key: str, value: Any) -> Any:
    part = key.partition(".")[2]
    Precision.of({part: value} if part else value)
    return value


def _parallel(key: str, value: Any) -> Any:
    part = key.partition(".")[2]
    if part:
        return as_size(key, value)
    Parallel.of(value)
    return value


def _host(key: str, value: Any) -> Any:
    """What replaces some of the host's seconds; those that are null stay."""
    from modelmeter.host import Host  # with NumPy, which no help needs

    given = value if isinstance(value, Mapping) else {"": value}
    Host.of({name: [0, 0, 0] if one is None else one for name, one in given.items()})
    return value


FLAG, FOLDER, BITS = of_type(bool, "true or false"), of_type(str, "a folder"), Kind(_precision, lists=True)
DEVICES = Kind(_parallel, lists=True)
PNG = Setting("png", FLAG, "and each figure as PNG")
WORD = Kind(lambda key, value: value, lambda: "words", str)
"""A name that the model knows."""
IN_YAML = {"runtime": "runtimes", "device": "fits_on", "placement": "placed"}
"""Keys by another name in YAML: Hydra takes one with the name of a folder for a choice of that folder's files."""
SHORT = {"weights": "precision.weights"}
"""Keys by a shorter name, where a command has no key of its own by it."""

CHOICES = tuple(
    Setting(group, one_of(partial(config_names, group)), f"one of: {', '.join(config_names(group))}")
    for group in ("model", *PARTS)
)
"""What a model is put together from: files of configs/, by folder. Numbers of theirs are keys below them."""

_MAPPED = {"precision": BITS, "parallel": DEVICES}
COUNTING = (
    *(Setting(f.name, one_of(f.metadata["valid"]) if f.metadata["valid"] else _MAPPED[f.name], f.metadata["help"])
      for f in fields(Counting)),
    Setting("precision.weights", BITS, "a dtype, bits per element or a policy such as q4_k_m; weights= for short"),
    *(Setting(f"precision.{role}", BITS, "likewise") for role in ("activations", "kv")),
    Setting("parallel.tensor", DEVICES, "devices that share each matrix: heads, width, vocabulary"),
    Setting("parallel.expert", DEVICES, "devices that share the experts"),
    Setting("parallel.data", DEVICES, "groups of devices that share the batch"),
    Setting("precision.overrides", BITS, "by tensor name: '+precision.overrides={*.experts.W_*:4.5}'"),
)  # fmt: skip
"""How work, traffic and memory are counted; shared by every command."""
_RUNTIME = next(setting for setting in COUNTING if setting.name == "runtime")
SWEPT = (replace(_RUNTIME, help="one row a runtime: what is one kernel", several=True),)
"""What every sweep may take several of."""

BATCH = Setting("batch", whole(), "pages at once")
SIZES = (
    BATCH,
    Setting("prompt_tokens", whole(0), "text tokens beside the image's"),
    Setting("decode_steps", whole(), "tokens generated after the prefill"),
)
IMAGE_SIZE = Setting("image_size", pair("WIDTHxHEIGHT in pixels"), "or WIDTHxHEIGHT in pixels", nullable=True)
GRID = Setting("grid", pair("ROWSxCOLUMNS"), "or ROWSxCOLUMNS of crops", nullable=True)
PAGE = (
    Setting("image", of_type(str, "the path of a picture file"), "a picture file", nullable=True),
    IMAGE_SIZE,
    GRID,
    Setting("mode", WORD, "or a mode of the model; also chooses the resolution for an image", nullable=True),
    *SIZES,
)
"""One page, a prompt and an answer."""


def _or_list(kind: Kind) -> Kind:
    def check(key: str, value: Any) -> Any:
        return [kind.check(key, one) for one in value] if isinstance(value, list) and value else kind.check(key, value)

    return Kind(check, lists=True)


IMAGES = tuple(replace(s, kind=_or_list(s.kind), help=f"{s.help}, or a [list] of a prompt's") for s in PAGE[:2])
REQUEST = joined(*PAGE, *IMAGES)
"""The same with one image or several."""

ALL = "all"
"""The name that stands for a whole catalogue."""
_DEVICE = entry("device")
FITS = (
    Setting(
        "device",
        replace(_DEVICE, check=lambda key, name: name if name == ALL else _DEVICE.check(key, name)),
        "of configs/device or YAML files, several as A,B; all: the whole catalogue",
        several=True,
    ),
    Setting("context", whole(), "tokens of image, prompt and answer; null: as prompt_tokens says", nullable=True),
    Setting("overhead", whole(0), "bytes that are held beside weights, KV cache and activations"),
)
"""What decides whether a request fits."""


TIMED = Setting("device", _DEVICE, "predict seconds too, on these of configs/device or YAML files, several as A,B; "
                "null: counts alone", several=True, nullable=True)  # fmt: skip
ON_ALL = replace(FITS[0], help="devices whose seconds are predicted, of configs/device or YAML files, several as A,B; "
                 "all: the whole catalogue; null: none", nullable=True)  # fmt: skip
HOST = Setting("host", Kind(_host, lists=True), "seconds of the host, each [low, point, high], such as "
               "host.step=[0,0,0]; null: as measured on the device, or else as configs/host.yaml has it")  # fmt: skip
TIMING = (TIMED, HOST)
"""What the seconds of a sweep depend on."""


def _devices(key: str, value: Any) -> list[str]:
    given = value if isinstance(value, list) and value else [value]
    return [_DEVICE.check(key, str(name)) for name in given]


SPLIT = (
    Setting(
        "placement", WORD, f"{', '.join(config_names('placement'))}, a YAML file, vision+decoder, or how many layers "
        "each device has, such as layers:6+6 or vision+layers:6+6",
    ),
    Setting("wire", WORD, "the format of what crosses; null: that of the placement, or else as it is stored",
            nullable=True),
    Setting("device", Kind(_devices, lists=True),
            "of configs/device or YAML files: one for all places, or A,B in their order; null: none", nullable=True),
    *FITS[1:],
)  # fmt: skip
"""What a split takes."""

TIME = (
    Setting("device", _DEVICE, "of configs/device or YAML files, several as A,B", several=True),
    HOST,
    Setting("out", FOLDER, "folder of the figure of the timeline; null: none is drawn", nullable=True),
    PNG,
)
"""What a prediction of time takes."""

PROFILE = (
    Setting("device", _DEVICE, "of configs/device or a YAML file"),
    Setting("stage", one_of(lambda: ("vision", "prefill", "decode")), "which one the trace is of: vision, prefill or "
            "decode; null: as its annotated ranges are called", nullable=True),
    *TIME[1:],
    Setting("out", FOLDER, "a folder for profile.csv and a figure; null: none", nullable=True),
)  # fmt: skip
"""What a profile takes."""

DEPTH = Setting("depth", one_of(lambda: ("1", "2", "3", "4")),
                "1: components of each stage, 2: their layers, 3 and 4: what these are made of")  # fmt: skip
OUTPUT = (
    Setting("out", FOLDER, "folder of the results; null: reports/sweep/<timestamp>/<name>", nullable=True),
    Setting("figures", FLAG, "draw the SVG figures too"),
    PNG,
    Setting("reference", FLAG,
            "add what FlopCounterMode counts on the reference modules; needs the extra `validation`"),
)  # fmt: skip
REPORT = (
    Setting("out", FOLDER, "folder of the reports"),
    PNG,
    Setting("validation", FLAG, "the comparison with the reference modules; needs the extra `validation`"),
)


def options_of(values: Mapping[str, Any], runtime: str, *settings: Setting) -> dict[str, Any]:
    """The keywords of a Workload: the counting settings and these others, under one runtime."""
    names = [s.name for s in (*COUNTING, *settings) if "." not in s.name]
    return {name: values[name] for name in names} | {"runtime": runtime}
