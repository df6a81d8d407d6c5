"""Where the YAML files of the package are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from modelmeter.errors import InputError

PACKAGE = Path(__file__).parent


@cache
def config_dir() -> Path:
    """The folder of YAML files: in the installed package, else in the checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent.parent / "configs"):
        if (folder / "run_sweep.yaml").is_file():
            return folder
    raise InputError("configs are missing from this installation of modelmeter; install it again")


def config_names(group: str) -> list[str]:
    """The YAML files of a group, by name."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))
