"""Families: devices of a vendor whose laws were not fitted here, and what public figures tell of them.

`families.yaml` has a family by the architectures of its devices, a measured device that stands for them if there is
one (in some laws, where these are told), and constants of laws with their sources. What is missing there comes from
NVIDIA's devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.folders import config_dir, read_once

FILE = Path(__file__).with_name("families.yaml")


class Family(NamedTuple):
    """The constants of a law that devices of a family have, and where they come from."""

    constants: Mapping[str, Any]
    told: str


def content() -> Mapping[str, Any]:
    """What `families.yaml` holds."""
    found: Mapping[str, Any] = read_once(FILE)
    return found


@cache
def family_of(architecture: str, law: str) -> Family | None:
    """What is known of a law on devices of an architecture; None for one that no family has.

    >>> family_of("Xe2", "product").told
    'those of arc_pro_b60 and public figures of Xe2 devices'
    >>> family_of("Ampere", "product") is None
    True
    """
    for name, given in content()["families"].items():
        if architecture not in given["architectures"]:
            continue
        like, measured = given.get("like"), {}
        if like and law in given.get("in", [law]):
            measured = read_once(config_dir() / "device" / f"{like}.yaml")["laws"].get(law, {})
        public = given["laws"].get(law, {})
        sources = [f"those of {like}"] * bool(measured) + [f"public figures of {name} devices"] * bool(public)
        return Family({**measured, **public}, " and ".join(sources) or "what NVIDIA devices share")
    return None
