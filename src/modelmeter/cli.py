"""The command line: sweep, cost, report, validate. Help and errors come before any heavy import.

Hydra, NumPy, matplotlib and torch are imported by the command that needs them, never by `--help`.
Bad input ends with one sentence on standard error and status 2.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from modelmeter.errors import InputError, choose, unknown
from modelmeter.folders import config_dir, config_names
from modelmeter.settings import (
    COUNTING,
    DEPTH,
    OUTPUT,
    PAGE,
    Setting,
    comment_of,
    commented_yaml,
    shown,
)

COMMANDS = {
    "sweep": "a named sweep: tables and figures over a grid of workloads",
    "cost": "the costs of one page by stage and component",
    "report": "the architecture and performance report of a model, with all sweeps and figures",
    "validate": "the proof: counts of the real modules beside ours (needs the extra `validation`)",
}


def main(argv: Sequence[str] | None = None, prog: str = "modelmeter") -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else ""
    run: dict[str, Callable[[list[str], str], int]] = {
        "sweep": _sweep, "cost": _cost, "report": _report, "validate": _validate,
    }  # fmt: skip
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
    except OSError as error:  # standard output that cannot be written
        print(f"{prog}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; earlier results are as they were", file=sys.stderr)
        return 130


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


def _keys(declared: Iterable[Setting], *files: str) -> str:
    """The keys of a command: defaults from its YAML files, help from the declarations."""
    defaults: dict[str, Any] = {}
    for file in files:
        for key, value in commented_yaml(config_dir() / f"{file}.yaml").items():
            defaults |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    lines = [
        f"  {'model=NAME':30} one of: {', '.join(config_names('model'))}",
        f"  {'model.dims.PART.NAME=NUMBER':30} a number of the model",
    ]
    for setting in declared:
        if setting.name in defaults:
            lines.append(f"  {f'{setting.name}={shown(defaults[setting.name])}':30} {setting.help}")
    return "\n".join(["", "keys (any value of the configuration can be overridden as key=value):", *lines])


def _sweep_help(usage: str, named: str) -> str:
    text = [f"usage: {usage} NAME [key=value ...] [--multirun]", "", "sweeps:"]
    for name in config_names("sweep"):
        about = comment_of(commented_yaml(config_dir() / "sweep" / f"{name}.yaml"))[1]
        text.append(f"  {name:18} {about}")
    if named:
        declared = (*importlib.import_module(f"modelmeter.sweep.{named}").SETTINGS, *OUTPUT)
        return "\n".join([*text, _keys(declared, "page", "counting", "output", f"sweep/{named}")])
    more = f"{usage} NAME --help lists the keys of a sweep's own."
    return "\n".join([*text, _keys((*COUNTING, *OUTPUT), "counting", "output"), "", more])


def _sweep(arguments: list[str], prog: str) -> int:
    usage = prog if "modelmeter.sweep" in prog else f"{prog} sweep"
    sweeps = config_names("sweep")
    named = arguments.pop(0) if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else ""
    if named not in sweeps and (named or (arguments and not _wants_help(arguments))):
        raise unknown("sweep", named, sweeps)
    if _wants_help(arguments) or not named:
        _print(_sweep_help(usage, named))
        return 0 if _wants_help(arguments) else 2
    from modelmeter import config
    from modelmeter.publish import settings_of
    from modelmeter.report.files import writable

    fixed, declared = [f"sweep@_global_={named}"], settings_of(named)
    if not any(a.startswith("-") for a in arguments):
        settings = config.compose("run_sweep", [*fixed, *arguments], declared)
        _run_sweep(named, settings, " ".join([usage, named, *arguments]), _folder(settings["out"]))
        return 0
    out = next((a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("out=")), None)
    folder = _folder(out)
    writable(folder)
    fixed.append("hydra.sweep.dir='{}'".format(str(folder / ".hydra").replace("'", "\\'")))  # its own files

    def job(settings: Mapping[str, Any], number: str, overrides: Sequence[str]) -> None:
        command = " ".join([usage, named, *overrides])
        _run_sweep(named, settings, command, folder / number if number else _folder(settings["out"]))

    return config.hydra_main("run_sweep", arguments, fixed, job, declared)


def _run_sweep(name: str, settings: Mapping[str, Any], command: str, parent: Path) -> None:
    from modelmeter import config
    from modelmeter.publish import sweep_tables
    from modelmeter.report.files import ENGLISH, obsolete_files, table_files, write_all
    from modelmeter.report.tables import answer

    if settings["png"] and not settings["figures"]:
        raise InputError("png=true contradicts figures=false")
    model = config.build_model(settings)
    tables = sweep_tables(name, model, settings)
    drawn: dict[str, str | bytes] = {}
    if settings["figures"]:
        from modelmeter.report.figures import figures

        for table in tables:
            drawn |= figures(table, ("svg", "png") if settings["png"] else ("svg",))
    contents: dict[str, str | bytes] = {}
    for table in tables:
        contents |= table_files(table, command, list(drawn))
    contents |= drawn
    folder = parent / name
    write_all(folder, contents, obsolete_files(folder, tables[0].name, contents))
    _print("\n".join(map(ENGLISH.finding, answer(tables))) + "\n")
    if "image" in settings and any(settings[key] is not None for key in ("image", "image_size", "grid")):
        _print(_page(model, config.build_workload(model, dict(settings) | {"runtime": tables[0].kind})) + "\n")
    _print(f"{len(tables[0].rows)} rows, {', '.join(contents)}\nin {folder}")


def _folder(out: Any) -> Path:
    from datetime import datetime

    if out is None or out == "":
        return Path("reports/sweep") / datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(str(out))


def _cost(arguments: list[str], prog: str) -> int:
    if _wants_help(arguments) or not arguments:
        models = ", ".join(config_names("model"))
        keys = _keys((*PAGE, *COUNTING, DEPTH), "page", "counting", "cost")
        _print(f"usage: {prog} cost MODEL [key=value ...]\n\nmodels: {models}\n{keys}")
        return 0 if arguments else 2
    name = arguments.pop(0)
    if name not in config_names("model"):
        raise unknown("model", name, config_names("model"))
    for argument in arguments:
        if "=" not in argument:
            raise InputError(f"{argument!r} is not key=value; see {prog} cost --help")
        if argument.startswith("model="):
            raise InputError(f"give the model once, not {name} and {argument}")
    from modelmeter import config

    settings = config.compose("cost", [f"model={name}", *arguments], (*PAGE, *COUNTING, DEPTH))
    model = config.build_model(settings)
    _print(_page(model, config.build_workload(model, settings), int(DEPTH.check(settings["depth"]))))
    return 0


def _page(model: Any, work: Any, depth: int = 1) -> str:
    """A page in five lines, then its table."""
    from modelmeter.catalogue import load_devices
    from modelmeter.report.tables import page_answer, page_table

    return f"{page_answer(model, work, load_devices())}\n\n{page_table(model, work, depth)}"


def _report(arguments: list[str], prog: str) -> int:
    models = config_names("report")
    keys = {"out": "reports", "png": "false", "validation": "true"}
    if _wants_help(arguments) or not arguments:
        lines = [
            f"usage: {prog} report MODEL [key=value ...]",
            f"\nmodels: {', '.join(models)}\n",
            f"  {'out=reports':30} folder of the reports",
            f"  {'png=false':30} each figure as PNG too",
            f"  {'validation=true':30} the comparison with the reference modules; needs the extra `validation`",
        ]
        _print("\n".join(lines))
        return 0 if arguments else 2
    name = arguments.pop(0)
    if name not in models:
        raise unknown("model with a report", name, models)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"{argument!r} is not key=value; see {prog} report --help")
        keys[choose("key", key, keys)] = value
    flags = {key: choose(key, keys[key], ("true", "false")) == "true" for key in ("png", "validation")}
    from modelmeter.publish import report_files
    from modelmeter.report.files import writable, write_all

    if not keys["out"]:
        raise InputError("out must be a folder, not ''")
    folder = Path(keys["out"])
    writable(folder)
    contents = report_files(name, f"modelmeter report {name}", **flags)
    write_all(folder, contents)
    _print(f"{len(contents)} files, {', '.join(n for n in contents if n.endswith('.md'))}\nin {folder}")
    return 0


def _validate(arguments: list[str], prog: str) -> int:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; see {prog} validate --help")

    parser = Parser(f"{prog} validate", description=COMMANDS["validate"])
    parser.add_argument("model", nargs="?", help=f"one of: {', '.join(config_names('model'))}; all of them by default")
    parser.add_argument("--vendor", metavar="DIR", help="also compare with the vendor's own classes in DIR")
    parser.add_argument("--device", default="meta", help="meta (default); cpu or cuda: real tensors too, timed")
    parser.add_argument("--layers", action="store_true", help="layers only, not the stages at full size")
    options = parser.parse_args(arguments)
    if options.model and options.model not in config_names("model"):
        raise unknown("model", options.model, config_names("model"))
    from modelmeter.publish import no_reference

    equal = True
    referenced = [m for m in config_names("model") if (Path(__file__).parent / "validate" / f"{m}.py").is_file()]
    for name in [options.model] if options.model else referenced:
        try:
            run = importlib.import_module("modelmeter.validate.run").run
            text, same = run(name, vendor=options.vendor, device=options.device, layers_only=options.layers)
        except ModuleNotFoundError as error:
            raise no_reference(name, error) from None
        _print(text)
        equal = equal and same
    return 0 if equal else 1
