"""Where the YAML files of the package are, and the comments in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError

PACKAGE = Path(__file__).parent
PARTS = ("tower", "projector", "decoder", "planner")
"""The groups of configs/ that a model is made of."""


@cache
def config_dir() -> Path:
    """The folder of YAML files: in the installed package, else in the checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent.parent / "configs"):
        if (folder / "run_sweep.yaml").is_file():
            return folder
    raise InputError("configs are missing from this installation of modelmeter; install it again")


@cache
def read_once(file: Path) -> Any:
    """The content of a YAML file that comes with the package, read once; it is shared, so it must not be changed."""
    import yaml

    return yaml.safe_load(file.read_text(encoding="utf-8"))


def config_names(group: str) -> list[str]:
    """The YAML files of a group, by name."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))


def names_file(name: str) -> bool:
    """Whether a model's name is where a config.json is: a path, a folder or a hub id, and no name of the catalogue."""
    return name not in config_names("model") and ("/" in name or name.endswith(".json") or Path(name).is_dir())


def commented_yaml(group: str, name: str) -> Any:
    """A YAML file of a group ("": of none) with its comments: mappings whose `ca` holds them. See `comment_of`."""
    from ruamel.yaml import YAML

    return YAML().load(config_dir() / group / f"{name}.yaml")


def comment_of(node: Any, key: str | None = None) -> list[str]:
    """The comment lines before the first key of a commented mapping, or behind the value of a key."""
    found = node.ca.items.get(key, (None,) * 3)[2:3] if key else (node.ca.comment or (None, None))[1]
    lines = "".join(token.value for token in found or () if token is not None).splitlines()
    return [line.strip("# ") for line in lines if line.strip()]
