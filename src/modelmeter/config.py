"""Configuration: the only module that knows Hydra. YAML and overrides in, models and workloads out.

Keys and values are checked against their declarations (settings.py) first; what Hydra and OmegaConf refuse
becomes one InputError with the key and the valid choices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmeter.errors import InputError, choose, unknown
from modelmeter.folders import config_dir, config_names
from modelmeter.settings import COUNTING, PAGE, Setting, checked, options_of

if TYPE_CHECKING:
    from modelmeter.models.model import BaseModel
    from modelmeter.workload import Workload


def compose(name: str, overrides: Sequence[str] = (), settings: Iterable[Setting] = ()) -> Any:
    """The resolved configuration `configs/<name>.yaml` with `key=value` overrides, as plain dicts.

    Overrides of `settings` are checked first. Raises InputError.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides = [quoted(o) for o in overrides]
    try:
        _check(overrides, settings)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra_compose(name, overrides=list(overrides))
        return _plain(config)
    except InputError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, name, overrides) from None


HIDDEN = {"runtime": "runtimes"}
"""Keys by another name in YAML: Hydra takes one with the name of a folder for a choice of that folder's files."""


def _plain(config: Any) -> dict[str, Any]:
    """A composed configuration as plain dicts, keys by the names that users know."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=True)
    return {shown: values.pop(key) for shown, key in HIDDEN.items() if key in values} | values


def _parsed(overrides: Sequence[str]) -> list[Any]:
    """Overrides as Hydra reads them: `key_or_group`, `value()` and whether several values are given."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: list[Any] = OverridesParser.create().parse_overrides(overrides=list(overrides))
    return found


def _check(overrides: Sequence[str], settings: Iterable[Setting]) -> None:
    """Raise InputError for an override that its setting does not take."""
    declared = {HIDDEN.get(setting.name, setting.name): setting for setting in settings}
    for override in _parsed(overrides):
        setting = declared.get(override.key_or_group)
        if setting is None or override.is_delete():
            continue
        sweep = override.is_sweep_override()
        for value in getattr(override.value(), "list", ()) if sweep else [override.value()]:
            plain = override._convert_value(value) if sweep else value
            if not (isinstance(plain, str) and "${" in plain):
                setting.check(plain)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> InputError:
    """Hydra's error as one sentence that names the key."""
    from hydra.errors import ConfigCompositionException, MissingConfigException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    for cause in _causes(error):
        if isinstance(cause, InputError):
            return cause
        if isinstance(cause, MissingConfigException) and cause.options and cause.missing_cfg_file:
            group, _, wrong = str(cause.missing_cfg_file).rpartition("/")
            return unknown(group, wrong, cause.options)
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
            return _unknown_key(str(cause.full_key), name, overrides)
    chosen = [o for o in overrides if "@" in o.partition("=")[0]]
    if isinstance(error, ConfigCompositionException) and chosen != list(overrides):
        known = compose(
            name, chosen
        )  # Hydra takes a key with the name of a folder for a choice, and has no word for it
        for key in (o.key_or_group for o in _parsed(overrides) if o.package is None):
            if key.partition(".")[0] not in known and not key.startswith("hydra"):
                return unknown_key(key, known)
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return InputError(f"cannot read the configuration ({' '.join(overrides) or name}): {first}")


def _unknown_key(missing: str, name: str, overrides: Sequence[str]) -> InputError:
    """Why a key is refused: it is a new entry of a mapping, or the configuration lacks it."""
    for override in _parsed(overrides):
        key = override.key_or_group
        if missing.startswith(f"{key}.") and isinstance(override.value(), dict):
            return InputError(f"{key} takes new entries with a leading plus sign: '+{key}={{NAME:VALUE}}'")
        if key.startswith(f"{missing}."):
            missing = key
    groups = [o for o in overrides if (config_dir() / o.partition("=")[0].partition("@")[0]).is_dir()]
    return unknown_key(missing, compose(name, groups))


def unknown_key(given: str, config: Any) -> InputError:
    """An InputError for a key that the configuration lacks; lists the keys beside it."""
    keys = list(_keys(config))
    parent = given.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == parent] or [k for k in keys if "." not in k]
    near = get_close_matches(given, keys, n=1, cutoff=0.5)
    return unknown("key", given, {*beside, *near})


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_":
                continue
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _keys(value, f"{prefix}{index}.")


def quoted(override: str) -> str:
    """An override as Hydra takes it: under its name in YAML, a path quoted where Hydra would read it otherwise."""
    key, equals, value = override.partition("=")
    key = HIDDEN.get(key, key)
    override = f"{key}{equals}{value}"
    if key not in ("image", "out") or not re.search(r"[^\w./,:-]", value, re.ASCII) or value[:1] in "'\"[$":
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}{equals}'{escaped}'"


def build_model(config: Mapping[str, Any]) -> BaseModel:
    """The model of a composed configuration: its components by group, and what `model` says of them."""
    from modelmeter.models.families import PARTS, assembled

    model = config["model"]
    if not isinstance(model, Mapping):
        raise InputError(f"model must be one of {', '.join(config_names('model'))}, not {model!r}")
    return assembled(model, {group: config[group] for group in PARTS})


def load_model(name: str, overrides: Sequence[str] = ()) -> BaseModel:
    """A model of the catalogue; `overrides` choose other components or numbers ("decoder.experts=32").

    Raises InputError.
    """
    choose("model", name, config_names("model"))
    if not overrides:
        return build_model(_as_it_stands(name))
    given = [overrides] if isinstance(overrides, str) else list(overrides)
    return build_model(compose("cost", [f"model={name}", *given]))


def chosen(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The components that a model's YAML chooses, by group, and what it says itself."""
    import yaml

    node = yaml.load((config_dir() / "model" / f"{name}.yaml").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    files: dict[str, str] = {}
    values: dict[str, Any] = {}
    for choice in node.pop("defaults"):
        if isinstance(choice, dict):  # override /GROUP@_global_.GROUP: FILE
            files |= {key.rpartition(".")[2]: file for key, file in choice.items()}
        elif choice != "_self_":
            files, values = chosen(choice)
    return files, values | node


def _as_it_stands(name: str) -> dict[str, Any]:
    """The configuration of a model that nobody changes: its YAML and those of the components that it chooses."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files, values = chosen(name)
    parts = {g: yaml.load((config_dir() / g / f"{file}.yaml").read_bytes(), loader) for g, file in files.items()}
    return parts | {"model": values}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a plain dict. Raises InputError if it is missing, malformed or no mapping."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read as YAML: {reason}") from None
    if not isinstance(values, dict) or not values:
        raise InputError(f"{str(path)!r} must hold KEY: VALUE lines")
    return {str(key): value for key, value in values.items()}


def build_workload(model: BaseModel, config: Mapping[str, Any]) -> Workload:
    """The workload of a composed configuration, for a model. Raises InputError."""
    values = checked((*PAGE, *COUNTING), config)
    model.require_tensors(values["precision"])
    return model.workload(**options_of(values, values["runtime"], *PAGE))


HYDRA_FLAGS = ("--multirun", "-m", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i")
"""The flags of Hydra that a sweep passes on."""


def _require_plugins(name: str, arguments: Sequence[str]) -> None:
    """Raise InputError for a launcher or another part of Hydra's own that is not installed."""
    chosen = [a for a in arguments if a.startswith("hydra/") and "=" in a]
    if not chosen:
        return
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            hydra_compose(name, overrides=chosen, return_hydra_config=True)
    except HydraException as error:
        raise _explain(error, name, chosen) from None


def hydra_main(
    name: str, arguments: Sequence[str], fixed: Sequence[str], run: Any, settings: Iterable[Setting] = ()
) -> int:
    """Hand the command line to Hydra (--multirun, --cfg and its other flags).

    `run(config, number, overrides)` is called for each job; number is "" outside a multirun.
    `fixed` are further overrides, `settings` those that values are checked against.
    """
    import sys

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    for argument in arguments:
        flag = argument.partition("=")[0]
        if argument.startswith("-") and flag not in HYDRA_FLAGS:
            raise unknown("option", flag, HYDRA_FLAGS)
    given = [a for a in arguments if "=" in a and not a.startswith("-")]
    known, overrides = compose(name, fixed), [quoted(a) for a in given]
    _require_plugins(name, arguments)
    valid = set(_keys(known))
    for key in (a.partition("=")[0] for a in given):
        if not key.startswith(("+", "~", "hydra")) and key.partition("@")[0] not in valid:
            raise unknown_key(key, known)
    try:
        _check(overrides, settings)
    except HydraException as error:
        raise _explain(error, name, overrides) from None

    def job(config: Any) -> None:
        plain = _plain(config)
        info = HydraConfig.get()
        try:
            number = f"job{info.job.num}" if info.mode == RunMode.MULTIRUN else ""
            run(plain, number, [o for o in info.overrides.task if not o.startswith("sweep@")])
        except InputError as error:
            print(f"modelmeter: {error}", file=sys.stderr)
            sys.exit(2)

    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra.run.dir=.", "hydra.sweep.subdir=."]
    flags = [a for a in arguments if "=" not in a or a.startswith("-")]
    previous, sys.argv = sys.argv, [sys.argv[0], *flags, *overrides, *fixed, *quiet]
    try:
        hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = previous
    return 0
