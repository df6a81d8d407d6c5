"""Configuration: the only module that knows Hydra. YAML and overrides in, models and workloads out.

Values are checked against their declarations (settings.py); what Hydra and OmegaConf refuse becomes one InputError
with the key and the valid choices.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmeter.errors import InputError, choose, near, unknown
from modelmeter.folders import PARTS, config_dir, config_names, names_file
from modelmeter.settings import CHOICES, COUNTING, IN_YAML, REQUEST, SHORT, Setting, checked, options_of

if TYPE_CHECKING:
    from modelmeter.models.model import BaseModel
    from modelmeter.workload import Workload


FROM_FILE = "_json"
"""The model that a file is read as; it is no name of the catalogue."""
_FIELD, _CHANGE = "model.config.", "model.changes."
"""How users name a field of a model's file, and where overrides of them stand."""
LEFT_OUT = {"run_sweep": ("~text",)}
"""What no run is configured by: the `text` of a sweep, which sweep/columns.py reads."""


def compose(name: str, overrides: Sequence[str] = (), settings: Sequence[Setting] = ()) -> dict[str, Any]:
    """The resolved configuration `configs/<name>.yaml` with `key=value` overrides, as plain dicts.

    Overrides of `settings` are checked first. Raises InputError.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    given = _checked([quoted(o, settings) for o in with_files(overrides)], settings)
    for several in (o for o in given if o.is_sweep_override()):
        raise InputError(f"{_as_given(several.input_line)}: only a sweep with --multirun takes several values")
    try:
        return _composed(name, given)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explained(error, name, given) from None


def _composed(name: str, overrides: Iterable[Any]) -> dict[str, Any]:
    return deepcopy(_composed_once(name, *LEFT_OUT.get(name, ()), *(o.input_line for o in overrides)))


@lru_cache(maxsize=512)
def _composed_once(name: str, *overrides: str) -> dict[str, Any]:
    """What Hydra composes, which takes it a fifth of a second; it is shared, so it must not be changed."""
    import hydra

    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return _plain(hydra.compose(name, list(overrides)))


def _plain(config: Any) -> dict[str, Any]:
    """A composed configuration as plain dicts, keys by the names that users know."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=True)
    return {shown: values.pop(key) for shown, key in IN_YAML.items() if key in values} | dict(values)


def with_files(overrides: Iterable[str]) -> list[str]:
    """Overrides in which a model that is a file is FROM_FILE with this file, and those of its fields are changes."""
    given = [(override, *override.partition("=")[::2]) for override in overrides]
    file = next((v for _, key, value in given if key == "model" and names_file(v := value.strip("'\""))), None)
    if file is None:
        return [override for override, *_ in given]
    others = [override for override, key, _ in given if key != "model"]
    changes = [re.sub(rf"^[+]*{_FIELD}", f"++{_CHANGE}", override) for override in others]
    return [f"model={FROM_FILE}", f"model.config={file}", *changes]


def quoted(override: str, settings: Iterable[Setting] = ()) -> str:
    """An override as Hydra takes it: under its name in YAML, a path quoted where Hydra would read it otherwise.

    A short name is one of `settings`, or stands for a longer one.
    """
    key, equals, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare in IN_YAML.values():
        raise InputError(f"unknown key {bare!r}, did you mean {_as_given(bare)!r}?")
    own = any(setting.name == bare for setting in settings)
    key = key.removesuffix(bare) + IN_YAML.get(bare, bare if own else SHORT.get(bare, bare))
    if (
        key in ("image", "out", "model.config", IN_YAML["device"], IN_YAML["placement"])
        and re.search(r"[^\w./,:-]", value, re.ASCII)
        and value[:1] not in tuple("'\"[$")
    ):
        value = "'{}'".format(value.replace("\\", "\\\\").replace("'", "\\'"))
    return f"{key}{equals}{value}"


def listed(overrides: Iterable[str], *keys: str) -> list[str]:
    """Overrides, those of some keys with several values as a list: A,B as [A,B]."""
    parts = ((override, *override.partition("=")[::2]) for override in overrides)
    return [f"{k}=[{v}]" if k in keys and "," in v and v[:1] not in "[{'\"" else given for given, k, v in parts]


def _as_given(override: str) -> str:
    """The reverse of `quoted`, but for quotes: an override by the name that users know."""
    key, equals, value = override.replace(f"++{_CHANGE}", _FIELD).partition("=")
    return {hidden: shown for shown, hidden in IN_YAML.items()}.get(key, key) + equals + value


def _values(override: Any) -> list[Any]:
    """The value of an override, or all that a multirun gives it."""
    if override.is_sweep_override():
        return [override._convert_value(value) for value in getattr(override.value(), "list", ())]
    return [override.value()]


def _checked(overrides: Sequence[str], settings: Iterable[Setting]) -> list[Any]:
    """Overrides as Hydra reads them: `key_or_group`, `value()` and whether several values are given.

    Raises InputError for what is no override and for a value that its setting does not take.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    declared = {IN_YAML.get(setting.name, setting.name): setting for setting in (*CHOICES, *settings)}
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        wrong = repr(_as_given(error.override))
        raise InputError(f"{wrong} is not KEY=VALUE; values with signs go in 'quotes'") from None
    for override in (o for o in parsed if o.key_or_group in declared and not o.is_delete()):
        for value in _values(override):
            if not (isinstance(value, str) and ("${" in value or value == FROM_FILE)):
                declared[override.key_or_group].check(value)
    return list(parsed)


def _explained(error: Exception, name: str, overrides: Sequence[Any]) -> InputError:
    """What Hydra refuses as one sentence that names the key."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        return unknown(group, wrong, error.options)
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    given = " ".join(_as_given(o.input_line) for o in overrides) or name
    return _refused_key(name, overrides) or InputError(f"cannot read the configuration ({given}): {first}")


def _refused_key(name: str, overrides: Sequence[Any]) -> InputError | None:
    """Why a key is refused that the configuration lacks, or has and shall get anew; None if none is."""
    from hydra.errors import HydraException

    changes = [o for o in overrides if not (o.is_add() or o.is_force_add() or o.is_delete())]
    groups = {"model", *PARTS} & _composed(name, []).keys()
    choices = [o for o in changes if o.package or o.key_or_group in groups]
    try:
        known = _composed(name, choices)
    except HydraException:
        return None
    keys = list(_keys(known))
    for o, key in ((o, o.key_or_group) for o in overrides):
        shown = _as_given(key)
        there, changed = {key, shown} & {*keys}, o in changes and o not in choices
        if there and o.is_add():
            return InputError(f"{_as_given(o.input_line[1:])} goes without the plus sign: the key is there")
        if there and changed and isinstance(o.value(), dict) and not {f"{key}.{k}" for k in o.value()} <= {*keys}:
            return InputError(f"{key} takes new entries with a leading plus sign: '+{key}={{NAME:VALUE}}'")
        if changed and not there and not key.startswith("hydra"):
            beside = [k for k in keys if k.rpartition(".")[0] == key.rpartition(".")[0]]
            return unknown("key", shown, {*(beside or known), *near(shown, keys)})
    return None


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    items = enumerate(config) if isinstance(config, list) else config.items() if isinstance(config, Mapping) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def build_model(config: Mapping[str, Any]) -> BaseModel:
    """The model of a composed configuration: its components by group, and what `model` says of them."""
    from modelmeter.models.families import assembled

    if not isinstance(config["model"], Mapping):
        raise InputError(f"model must be one of {', '.join(config_names('model'))}, not {config['model']!r}")
    return assembled(config["model"], {group: config[group] for group in PARTS})


def load_model(name: str, overrides: Sequence[str] = ()) -> BaseModel:
    """A model of the catalogue, or of a config.json by its path, its folder or its id on the hub.

    `overrides` choose other components or numbers ("decoder.experts=32").

    Raises InputError.
    """
    given = [overrides] if isinstance(overrides, str) else overrides
    if names_file(name):
        from modelmeter.models.config_json import model_of

        return build_model(compose("cost", [f"model={name}", *given])) if given else model_of(name)
    choose("model", name, config_names("model"))
    return build_model(compose("cost", [f"model={name}", *given]) if given else as_it_stands(name))


def as_it_stands(name: str) -> dict[str, Any]:
    """What Hydra composes of a model that nobody changes: its YAML and those of the components that it chooses."""
    files, values = chosen(name)
    return {group: _yaml(group, file) for group, file in files.items()} | {"model": values}


def chosen(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The components that a model's YAML chooses, by group, and what it says itself."""
    node = _yaml("model", name)
    files, values = dict[str, str](), dict[str, Any]()
    for choice in node.pop("defaults"):
        if isinstance(choice, dict):  # override /GROUP@_global_.GROUP: FILE
            files |= {key.rpartition(".")[2]: file for key, file in choice.items()}
        elif choice != "_self_":
            files, values = chosen(choice)
    return files, values | node


def _yaml(group: str, name: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((config_dir() / group / f"{name}.yaml").read_bytes(), loader)


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
    values = checked((*REQUEST, *COUNTING), config)
    return model.workload(**options_of(values, values["runtime"], *REQUEST))


HYDRA_FLAGS = ("--multirun", "-m", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i")
"""The flags of Hydra that a sweep passes on."""
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra.run.dir=.", "hydra.sweep.subdir=.")


def _alternatives(override: Any) -> list[str]:
    """The override, or one for each component that a multirun chooses by it; another swept key is left empty."""
    if not override.is_sweep_override():
        return [override.input_line]
    values = _values(override) if override.key_or_group in ("model", *PARTS) else ["null"]
    return [_as_given(f"{override.get_key_element()}={value}") for value in values]


def hydra_main(name: str, given: Sequence[str], fixed: Sequence[str], run: Any, settings: Sequence[Setting]) -> None:
    """Hand the command line to Hydra (--multirun, --cfg, other flags); a job calls `run(config, number, overrides)`.

    The number is "" outside a multirun. `fixed` are further overrides, `settings` those that values are checked
    against. Raises InputError for what Hydra itself would refuse in many lines.
    """
    import hydra

    flags = [a for a in given if "=" not in a or a.startswith("-")]
    overrides = [quoted(a, settings) for a in with_files(a for a in given if a not in flags)]
    for flag in (flag.partition("=")[0] for flag in flags if flag.startswith("-")):
        choose("option", flag, HYDRA_FLAGS)
    for chosen in product(*map(_alternatives, _checked(overrides, settings))):
        compose(name, [*fixed, *chosen])
    fixed = [*fixed, *LEFT_OUT.get(name, ())]

    def job(config: Any) -> None:
        info = hydra.core.hydra_config.HydraConfig.get()
        number = f"job{info.job.num}" if "num" in info.job else ""
        try:
            run(_plain(config), number, [_as_given(o) for o in info.overrides.task if o not in fixed])
        except InputError as error:
            print(f"modelmeter: {error}", file=sys.stderr)
            sys.exit(2)

    previous, sys.argv = sys.argv, [sys.argv[0], *flags, *overrides, *fixed, *QUIET]
    try:
        hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = previous
