"""The catalogues of configs/: devices, profiles, published figures and the sources of a model's numbers.

A name stands for a YAML of the package, a path for a user's own file anywhere; both are checked alike.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmeter.config import chosen, read_yaml
from modelmeter.device import Device
from modelmeter.errors import InputError, unknown
from modelmeter.folders import comment_of, commented_yaml, config_dir, config_names
from modelmeter.settings import Setting, entry, shown
from modelmeter.sweep.profiles import Profile

if TYPE_CHECKING:
    from modelmeter.host import Host

KINDS: dict[str, tuple[str, type[Any]]] = {"devices": ("device", Device), "profiles": ("profile", Profile)}
"""Catalogues by the key of a sweep that takes their entries: folder of configs/, class."""

FEATURED = ["a100_40gb", "a100_80gb", "h100_sxm", "h200_sxm", "l40s", "mi300x", "rtx_4090", "rtx_5090"]
"""The devices of a page's answer, where nobody names some."""


def load_devices(names: Any = None) -> list[Device]:
    """Device objects by name of configs/device or path of a YAML file; None: the whole catalogue. Raises InputError."""
    return load("devices", names)


def load_profiles(names: Any = None) -> list[Profile]:
    """Profile objects by name of configs/profile or path of a YAML file; None: all of them. Raises InputError."""
    return load("profiles", names)


def load_host(changed: Mapping[str, Any] | None = None) -> Host:
    """The host of configs/host.yaml with what is `changed` there, which stands before what was measured on a device;
    None as a value: not changed. Raises InputError."""
    from modelmeter.host import Host  # with NumPy, which no help needs

    known = read_yaml(config_dir() / "host.yaml")["host"]
    given = {key: value for key, value in (changed or {}).items() if value is not None}
    return Host.of(known | given, given)


def load(key: str, names: Any = None) -> list[Any]:
    """The entries of a folder of configs, or of a user's files, as objects. Raises InputError."""
    group, kind = KINDS[key]
    known = config_names(group)
    given = Setting(key, entry(group), "", several=True).check(known if names is None else names)
    found = [_shipped(key, name) if name in known else _read(group, Path(name), name, kind) for name in given]
    for what in ("name", "title"):
        called = [getattr(entry, what) for entry in found]
        for word in (word for word in called if called.count(word) > 1):
            raise InputError(f"{key} has two entries with the {what} {word!r}; tables need different ones")
    return found


def load_published(model: str) -> dict[str, Any]:
    """What configs/published says of a model: figures to stand beside the computed ones; {} if nothing."""
    path = config_dir() / "published" / f"{model}.yaml"
    return read_yaml(path) if path.is_file() else {}


def published_table(model: str, name: str) -> list[dict[str, str]]:
    """The rows of a published table of a model, configs/published/<model>/<name>.csv, cells as printed."""
    with (config_dir() / "published" / model / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dims_with_sources(model: str) -> list[tuple[str, str, str]]:
    """(name, number, source) of every number of a model's components, or of its config.json; a source is the comment
    behind it."""
    nodes = {group: commented_yaml(group, file) for group, file in chosen(model)[0].items()}
    own = commented_yaml("model", model)
    if "config" in own:
        return list(_sourced({"config": own["config"]}, "model.", "; ".join(comment_of(own, "config"))))
    return [row for group, node in nodes.items() for row in _sourced(node, f"{group}.") if row[0] != f"{group}.family"]


def _sourced(node: Any, prefix: str, above: str = "") -> Iterator[tuple[str, str, str]]:
    """Each value below a node; what stands behind the node itself is the source of all of them."""
    for key, value in node.items():
        behind = comment_of(node, key) if hasattr(node, "ca") else ()
        source = "; ".join(filter(None, (above, *behind)))
        if isinstance(value, dict):
            yield from _sourced(value, f"{prefix}{key}.", source)
        else:
            yield f"{prefix}{key}", shown(value), source


@cache
def _shipped(key: str, name: str) -> Any:
    """An entry of the package, read once."""
    group, kind = KINDS[key]
    return _read(group, config_dir() / group / f"{name}.yaml", name, kind)


def _read(group: str, path: Path, name: str, kind: type[Any]) -> Any:
    values = read_yaml(path)
    valid = {f.name: f for f in fields(kind) if f.name != "name"}
    for given in (given for given in values if given not in valid):
        raise unknown(f"key of {group} {name!r}:", given, valid)
    needed = (key for key, f in valid.items() if f.default is MISSING and f.default_factory is MISSING)
    for lacking in (key for key in needed if key not in values):
        raise InputError(f"{group} {name!r} lacks {lacking}; its keys: {', '.join(valid)}")
    return kind(name=path.stem, **values)
