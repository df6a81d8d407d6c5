"""The command line: sweep, cost, validate. Help and errors come before any heavy import.

Hydra, NumPy, matplotlib and torch are imported by the command that needs them, never by `--help`.
Bad input ends with one sentence on standard error and status 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelmeter.errors import InputError, unknown

COMMANDS = {
    "sweep": "a named sweep: tables and figures over a grid of workloads",
    "cost": "the costs of one page by stage and component",
    "validate": "the proof: counts of the real modules beside ours (needs modelmeter[validation])",
}


def main(argv: Sequence[str] | None = None, prog: str = "modelmeter") -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else ""
    run: dict[str, Callable[[list[str], str], int]] = {"sweep": _sweep, "cost": _cost, "validate": _validate}
    try:
        if not command:
            if arguments and arguments[0] not in ("-h", "--help", "--version"):
                raise unknown("command", arguments[0], COMMANDS)
            _print(_version() if "--version" in arguments else _overview(prog))
            return 0 if arguments else 2
        return run[command](arguments, prog)
    except InputError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()


def _version() -> str:
    import modelmeter

    return f"modelmeter {modelmeter.__version__}"


def _overview(prog: str) -> str:
    lines = [f"usage: {prog} COMMAND ...", "", "commands:"]
    lines += [f"  {name:10} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", f"{prog} COMMAND --help tells more."])


def _wants_help(arguments: Sequence[str]) -> bool:
    return any(a in ("-h", "--help") for a in arguments)


def _config_dir() -> Path:
    from modelmeter.config import config_dir

    return config_dir()


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (_config_dir() / group).glob("*.yaml"))


def _settings(name: str) -> dict[str, str]:
    """The keys of a YAML file, each with default and meaning; read as text: the file is the help."""
    found, parent = {}, ""
    for line in (_config_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        key, colon, rest = line.partition(":")
        if not colon or line.startswith(("#", "  -", "defaults", "name")):
            continue
        value, _, meaning = rest.partition("#")
        if line.startswith("  "):
            key = f"{parent}.{key.strip()}"
        elif not value.strip():
            parent = key
            continue
        found[key] = f"  {key + '=' + value.strip():30} {meaning.strip()}"
    return found


def _keys(*files: str) -> str:
    lines = {
        "model": f"  {'model=NAME':30} one of: {', '.join(_names('model'))}",
        "dims": f"  {'model.dims.PART.NAME=NUMBER':30} a number of the model",
    }
    for file in files:
        lines |= {key: text for key, text in _settings(file).items() if key not in lines}
    return "\n".join(["", "keys (any value of the configuration can be overridden as key=value):", *lines.values()])


def _sweep(arguments: list[str], prog: str) -> int:
    usage = prog if "modelmeter.sweep" in prog else f"{prog} sweep"
    sweeps = _names("sweep")
    named = arguments.pop(0) if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else ""
    if named and named not in sweeps:
        raise unknown("sweep", named, sweeps)
    if _wants_help(arguments) or not named:
        text = [f"usage: {usage} NAME [key=value ...] [--multirun]", "", "sweeps:"]
        for name in sweeps:
            described = (_config_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1]
            text.append(f"  {name:16} {described.lstrip('# ')}")
        _print("\n".join(text) + "\n" + _keys(f"sweep/{named or sweeps[0]}", "page", "output"))
        return 0 if _wants_help(arguments) else 2
    from modelmeter import config

    command = f"{usage} {' '.join([named, *arguments])}"
    if any(a.startswith("-") for a in arguments):
        out = next((a.partition("=")[2] for a in arguments if a.startswith("out=")), None)
        folder = _folder(out)
        fixed = [f"sweep@_global_={named}", f"hydra.sweep.dir='{folder}'"]

        def job(settings: Mapping[str, Any], number: str) -> None:
            _run_sweep(named, settings, command, folder / number if number else _folder(settings["out"]))

        return config.hydra_main("run_sweep", arguments, fixed, job)
    settings = config.compose("run_sweep", [f"sweep@_global_={named}", *arguments])
    _run_sweep(named, settings, command, _folder(settings["out"]))
    return 0


def _run_sweep(name: str, settings: Mapping[str, Any], command: str, parent: Path) -> None:
    from modelmeter import config
    from modelmeter.report.files import table_files, write_all

    model = config.build_model(settings)
    reference = _reference(model.name) if settings["reference"] else None
    sweep = importlib.import_module(f"modelmeter.sweep.{name}")
    shown = {key: value for key, value in settings.items() if key != "model"} | {"model": model.name}
    table = sweep.run(model, shown, reference)
    contents = table_files(table, command)
    if settings["figures"]:
        from modelmeter.report.figures import figures

        contents |= figures(table)
    folder = parent / name
    write_all(folder, contents)
    if settings["image"] is not None or settings["image_size"] is not None:
        from modelmeter.report.tables import page_table

        kinds = settings["attention"]
        page = dict(settings) | {"attention": kinds if isinstance(kinds, str) else kinds[-1]}
        _print(page_table(model, config.build_workload(model, page)) + "\n")
    _print(f"{len(table.rows)} rows, {', '.join(contents)}\nin {folder}")


def _folder(out: str | None) -> Path:
    from datetime import datetime

    return Path(out) if out else Path("reports/sweep") / datetime.now().strftime("%Y%m%d-%H%M%S")


def _reference(model: str) -> Any:
    """The function that counts a workload on the model's reference modules."""
    try:
        return importlib.import_module(f"modelmeter.validate.{model}_stages").reference_counts
    except ModuleNotFoundError as error:
        raise _no_reference(model, error) from None


def _no_reference(model: str, error: ModuleNotFoundError) -> InputError:
    if error.name and error.name.startswith("modelmeter.validate."):
        return InputError(f"model {model!r} has no reference modules to compare with")
    return InputError(f"{error.name} is not installed: pip install 'modelmeter[validation]'")


def _cost(arguments: list[str], prog: str) -> int:
    if _wants_help(arguments) or not arguments:
        models = ", ".join(_names("model"))
        _print(f"usage: {prog} cost MODEL [key=value ...]\n\nmodels: {models}\n{_keys('page', 'cost')}")
        return 0 if arguments else 2
    name = arguments.pop(0)
    if name not in _names("model"):
        raise unknown("model", name, _names("model"))
    for argument in arguments:
        if "=" not in argument:
            raise InputError(f"{argument!r} is not key=value; see {prog} cost --help")
    from modelmeter import config
    from modelmeter.errors import choose
    from modelmeter.report.tables import page_table

    settings = config.compose("cost", [f"model={name}", *arguments])
    model = config.build_model(settings)
    depth = int(choose("depth", str(settings["depth"]), ("1", "2")))
    _print(page_table(model, config.build_workload(model, settings), depth))
    return 0


def _validate(arguments: list[str], prog: str) -> int:
    import argparse

    parser = argparse.ArgumentParser(f"{prog} validate", description=COMMANDS["validate"])
    parser.add_argument("model", nargs="?", help=f"one of: {', '.join(_names('model'))}; all of them by default")
    parser.add_argument("--vendor", metavar="DIR", help="also compare with the vendor's own classes in DIR")
    parser.add_argument("--device", default="meta", help="meta (default); cpu or cuda: real tensors too, timed")
    parser.add_argument("--layers", action="store_true", help="layers only, not the stages at full size")
    options = parser.parse_args(arguments)
    if options.model and options.model not in _names("model"):
        raise unknown("model", options.model, _names("model"))
    equal = True
    for name in [options.model] if options.model else _names("model"):
        try:
            run = importlib.import_module("modelmeter.validate.run").run
            text, same = run(name, vendor=options.vendor, device=options.device, layers_only=options.layers)
        except ModuleNotFoundError as error:
            raise _no_reference(name, error) from None
        _print(text)
        equal = equal and same
    return 0 if equal else 1
