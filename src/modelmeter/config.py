"""Configuration: the only module that knows Hydra. YAML and overrides in, layers and models out.

Only classes of modelmeter may be instantiated from a YAML, unless the caller allows more by name.
Errors of Hydra and OmegaConf become one InputError with the key and the valid choices.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError, unknown

PACKAGE = Path(__file__).parent


def config_dir() -> Path:
    """The folder of YAML files: in the installed package, else in the checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent.parent / "configs"):
        if (folder / "run_sweep.yaml").is_file():
            return folder
    raise InputError("configs are missing from this installation of modelmeter; install it again")


def config_names(group: str) -> list[str]:
    """The YAML files of a group, by name."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))


def _divide(what: str, value: int, by: str, divisor: int) -> int:
    if not isinstance(divisor, int) or divisor < 1 or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} and {by} must be whole numbers of at least 1, not {value!r} and {divisor!r}")
    if value % divisor:
        raise InputError(f"{what} {value} is not divisible by {by} {divisor}")
    return value // divisor


def compose(name: str, overrides: Sequence[str] = ()) -> Any:
    """The resolved configuration `configs/<name>.yaml` with `key=value` overrides, as plain dicts."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("divide", _divide, replace=True)
    overrides = [quoted(o) for o in overrides]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = hydra_compose(name, overrides=list(overrides))
        return OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, name, overrides) from None


def _explain(error: Exception, name: str, overrides: Sequence[str]) -> InputError:
    """Hydra's error as one sentence that names the key."""
    ours = _input_error(error)
    if ours is not None:
        return ours
    text = str(error)
    key = re.search(r"Could not override '([^']+)'|Key '([^']+)'", text)
    if key:
        given = next(g for g in key.groups() if g)
        known = compose(name, [o for o in overrides if "@" in o.partition("=")[0]])
        if given in _keys(known):
            return InputError(f"{given} takes new entries with a leading plus sign: '+{given}={{NAME:VALUE}}'")
        return unknown_key(given, known)
    group = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if group:
        return unknown(group[1], group[2], config_names(group[1]))
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return InputError(f"cannot read the configuration ({' '.join(overrides) or name}): {first}")


def _input_error(error: BaseException | None) -> InputError | None:
    """Our own error among the causes of one that Hydra wrapped around it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


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


def build(config: Any, allow: Iterable[str] = ()) -> Any:
    """Instantiate a configuration node; each `_target_` must be a class of modelmeter or in `allow`."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    for target in _targets(config):
        _check_target(target, set(allow))
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        key = re.search(r"full_key: (\S+)", str(error))
        ours = _input_error(error)
        if ours is not None:
            raise InputError(f"{ours} (model.{key[1]})" if key else str(ours)) from None
        last = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"the configuration of the model{'.' + key[1] if key else ''} is wrong: {last}") from None


def quoted(override: str) -> str:
    """An override with its path quoted for Hydra where it has characters that Hydra would read otherwise."""
    key, equals, value = override.partition("=")
    if key not in ("image", "out") or not re.search(r"[^\w./,:-]", value, re.ASCII) or value[:1] in "'\"[$":
        return override
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}{equals}'{escaped}'"


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _targets(value)


def _check_target(target: str, allowed: set[str]) -> None:
    if target in allowed:
        return
    refusal = InputError(f"_target_ {target!r} is not a class of modelmeter; allow others by name with allow=[...]")
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] != "modelmeter":
        raise refusal
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        raise refusal from None
    if found is None and module == "modelmeter.layers":
        raise unknown("layer", name, importlib.import_module(module).__all__)
    if not isinstance(found, type) or not found.__module__.startswith("modelmeter."):
        raise refusal


def build_model(config: Mapping[str, Any], allow: Iterable[str] = ()) -> Any:
    """The model of a composed configuration; `dims` only names its numbers."""
    from modelmeter.models.model import Model

    if not isinstance(config["model"], Mapping):
        raise InputError(f"model must be one of {', '.join(config_names('model'))}, not {config['model']!r}")
    node = {key: value for key, value in config["model"].items() if key != "dims"}
    try:
        model = build(node, allow)
    except (TypeError, AttributeError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"model has not the shape of configs/model/{node.get('name')}.yaml: {reason}") from None
    if not isinstance(model, Model):
        raise InputError(f"model must be a modelmeter Model, not {type(model).__name__}")
    return model


def load_model(name: str, overrides: Sequence[str] = (), *, allow: Iterable[str] = ()) -> Any:
    """A model of the catalogue, `overrides` changing its configuration ("dims.decoder.experts=32").

    `allow` names classes outside modelmeter that its YAML may instantiate. Raises InputError.
    """
    overrides = [overrides] if isinstance(overrides, str) else overrides
    relative = []
    for override in overrides:
        key = override.lstrip("+~")
        sign = override[: len(override) - len(key)]
        relative.append(override if key.startswith("model.") else f"{sign}model.{key}")
    return build_model(compose("cost", [f"model={name}", *relative]), allow)


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


def build_workload(model: Any, config: Mapping[str, Any]) -> Any:
    """The workload of a composed configuration, for a model."""
    sizes = ("image", "image_size", "grid", "mode", "batch", "prompt_tokens", "decode_steps")
    options = ("logits", "causal", "attention", "rotary", "execution")
    missing = [k for k in (*sizes, *options, "precision") if k not in config]
    if missing:
        raise InputError(f"key {missing[0]!r} is missing from the configuration")
    for key in (*sizes, *options):
        if isinstance(config[key], list):
            raise InputError(f"{key} must be one value, not {config[key]!r}; sweep several with --multirun {key}=A,B")
    model.require_tensors(config["precision"])
    return model.workload(**{k: config[k] for k in sizes + options}, precision=config["precision"])


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
        group, _, wrong = chosen[-1].partition("=")
        found = re.search(r"Available options in '[^']+':\n((?:\t\S+\n)+)", str(error))
        if found is None:
            raise _explain(error, name, chosen) from None
        raise unknown(group, wrong, found[1].split()) from None


def hydra_main(name: str, arguments: Sequence[str], fixed: Sequence[str], run: Any) -> int:
    """Hand the command line to Hydra (--multirun, --cfg and its other flags).

    `run(config, number, overrides)` is called for each job; number is "" outside a multirun.
    `fixed` are further overrides.
    """
    import sys

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    for argument in arguments:
        flag = argument.partition("=")[0]
        if argument.startswith("-") and flag not in HYDRA_FLAGS:
            raise unknown("option", flag, HYDRA_FLAGS)
    known = compose(name, fixed)
    _require_plugins(name, arguments)
    valid = set(_keys(known))
    for argument in arguments:
        key = argument.partition("=")[0]
        if "=" in argument and not argument.startswith(("-", "+", "~", "hydra")) and key.partition("@")[0] not in valid:
            raise unknown_key(key, known)

    def job(config: Any) -> None:
        plain = OmegaConf.to_container(config, resolve=True)
        info = HydraConfig.get()
        try:
            number = f"job{info.job.num}" if info.mode == RunMode.MULTIRUN else ""
            run(plain, number, [o for o in info.overrides.task if not o.startswith("sweep@")])
        except InputError as error:
            print(f"modelmeter: {error}", file=sys.stderr)
            sys.exit(2)

    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra.run.dir=.", "hydra.sweep.subdir=."]
    overrides = [quoted(a) for a in arguments if "=" in a and not a.startswith("-")]
    flags = [a for a in arguments if "=" not in a or a.startswith("-")]
    previous, sys.argv = sys.argv, [sys.argv[0], *flags, *overrides, *fixed, *quiet]
    try:
        hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = previous
    return 0
