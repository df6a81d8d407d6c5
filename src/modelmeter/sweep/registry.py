"""The sweeps by name, and what their modules declare. A new sweep is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from modelmeter.sweep import (
    columns,
    compression,
    e2e_decode,
    e2e_vision_prefill,
    profiles,
    requirements,
    sequence,
    targets,
    vision_crops,
)  # fmt: skip

SWEEPS: dict[str, ModuleType] = {
    "compression": compression,
    "e2e_decode": e2e_decode,
    "e2e_vision_prefill": e2e_vision_prefill,
    "profiles": profiles,
    "sequence": sequence,
    "targets": targets,
    "vision_crops": vision_crops,
}


@cache
def declared(what: str) -> dict[str, Any]:
    """All COLUMNS or MEASURES (objects with a name) or FINDINGS (a mapping) of the sweeps and of what they share."""
    found: dict[str, Any] = {}
    for module in (columns, requirements, *SWEEPS.values()):
        some = getattr(module, what, ())
        found |= some if isinstance(some, Mapping) else {one.name: one for one in some}
    return found
