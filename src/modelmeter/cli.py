"""The command line: sweep, cost, report, validate. Help and errors come before any heavy import.

Hydra, NumPy, matplotlib and torch are imported by the command that needs them, never by `--help`.
Bad input ends with one sentence on standard error and status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modelmeter.errors import InputError, choose
from modelmeter.folders import comment_of, commented_yaml, config_names
from modelmeter.settings import CHOICES, COUNTING, DEPTH, IN_YAML, OUTPUT, PAGE, REPORT, Setting, checked, shown

if TYPE_CHECKING:
    from modelmeter.models.model import BaseModel
    from modelmeter.workload import Workload

COMMANDS = {
    "sweep": "a named sweep: tables and figures over a grid of workloads",
    "cost": "the costs of one page by stage and component",
    "report": "the architecture and performance report of a model, with all sweeps and figures",
    "validate": "the proof: counts of the real modules beside ours (needs the extra `validation`)",
}


def main(argv: Sequence[str] | None = None, prog: str = "modelmeter") -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    run: dict[str, Callable[[list[str], str], int]] = {
        "sweep": _sweep, "cost": _cost, "report": _report, "validate": _validate,
    }  # fmt: skip
    try:
        if not arguments or arguments[0] in ("-h", "--help", "--version"):
            _print(_version() if "--version" in arguments else _overview(prog))
            return 0 if arguments else 2
        return run[choose("command", arguments[0], COMMANDS)](arguments[1:], prog)
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
    lines = [f"usage: {prog} COMMAND ...", "", "commands:", *(_line(*command) for command in COMMANDS.items())]
    return "\n".join([*lines, "", f"{prog} COMMAND --help tells more."])


def _wants_help(arguments: Sequence[str]) -> bool:
    return not arguments or any(a in ("-h", "--help") for a in arguments)


def _helped(arguments: Sequence[str], text: str) -> int:
    """Print a help text; whoever said nothing at all has not asked for it."""
    _print(text)
    return 0 if arguments else 2


def _line(left: str, right: str) -> str:
    return f"  {left:30} {right}"


def _keys(settings: Iterable[Setting], *files: str) -> str:
    """The keys of a command: defaults from its YAML files, help from the declarations."""
    defaults: dict[str, Any] = {setting.name: "NAME" for setting in CHOICES}
    for file in files:
        values = commented_yaml("", file)
        defaults |= {key: values[stored] for key, stored in IN_YAML.items() if stored in values}
        for key, value in values.items():
            defaults |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    lines = [_line(f"{s.name}={shown(defaults[s.name])}", s.help) for s in settings if s.name in defaults]
    return "\n".join(["", "keys (any value of the configuration can be overridden as key=value):", *lines])


def _require_pairs(arguments: Iterable[str], command: str) -> None:
    for argument in arguments:
        if "=" not in argument:
            raise InputError(f"{argument!r} is not key=value; see {command} --help")


def _sweep_help(usage: str, named: str) -> str:
    text = [f"usage: {usage} NAME [key=value ...] [--multirun]", "", "sweeps:"]
    text += [_line(name, comment_of(commented_yaml("sweep", name))[1]) for name in config_names("sweep")]
    if named:
        from modelmeter.publish import settings_of

        files = ("page", "counting", "output", f"sweep/{named}")
        return "\n".join([*text, _keys((*CHOICES, *settings_of(named)), *files)])
    more = f"{usage} NAME --help lists the keys of a sweep's own."
    return "\n".join([*text, _keys((*CHOICES, *COUNTING, *OUTPUT), "counting", "output"), "", more])


def _sweep(arguments: list[str], prog: str) -> int:
    usage = prog if "modelmeter.sweep" in prog else f"{prog} sweep"
    named = arguments[0] if arguments and not arguments[0].startswith("-") and "=" not in arguments[0] else ""
    if named or not _wants_help(arguments):
        choose("sweep", named, config_names("sweep"))
    if _wants_help(arguments):
        return _helped(arguments, _sweep_help(usage, named))
    from modelmeter import config
    from modelmeter.publish import settings_of
    from modelmeter.report.files import writable

    given, fixed, declared = arguments[1:], [f"sweep@_global_={named}"], settings_of(named)
    if not any(a.startswith("-") for a in given):
        settings = config.compose("run_sweep", [*fixed, *given], declared)
        _run_sweep(named, settings, " ".join([usage, named, *given]), _folder(settings["out"]))
        return 0
    folder = _folder(next((a.partition("=")[2].strip("'\"") for a in given if a.startswith("out=")), None))
    writable(folder)
    fixed.append("hydra.sweep.dir='{}'".format(str(folder / ".hydra").replace("'", "\\'")))  # its own files

    def job(settings: Mapping[str, Any], number: str, overrides: Sequence[str]) -> None:
        command = " ".join([usage, named, *overrides])
        _run_sweep(named, settings, command, folder / number if number else _folder(settings["out"]))

    return config.hydra_main("run_sweep", given, fixed, job, declared)


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


def _folder(out: str | None) -> Path:
    from datetime import datetime

    return Path("reports/sweep") / datetime.now().strftime("%Y%m%d-%H%M%S") if out is None else Path(out)


def _cost_help(prog: str, named: str) -> str:
    from modelmeter.catalogue import dims_with_sources
    from modelmeter.config import chosen

    lines = [f"usage: {prog} cost MODEL [key=value ...]", "", f"models: {', '.join(config_names('model'))}"]
    lines.append(_keys((*CHOICES[1:], *PAGE, *COUNTING, DEPTH), "page", "counting", "cost"))
    if not named:
        return "\n".join([*lines, "", f"{prog} cost MODEL --help lists its numbers and where they come from."])
    parts = [_line(f"{g}={file}", comment_of(commented_yaml(g, file))[1]) for g, file in chosen(named)[0].items()]
    numbers = [_line(f"{key}={value}", source) for key, value, source in dims_with_sources(named)]
    return "\n".join([*lines, "", f"{named} and its numbers:", *parts, *numbers])


def _cost(arguments: list[str], prog: str) -> int:
    named = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if named:
        choose("model", named, config_names("model"))
    if not named or _wants_help(arguments):
        return _helped(arguments, _cost_help(prog, named))
    given = arguments[1:]
    _require_pairs(given, f"{prog} cost")
    for argument in given:
        if argument.startswith("model="):
            raise InputError(f"give the model once, not {named} and {argument}")
    from modelmeter import config

    settings = config.compose("cost", [f"model={named}", *given], (*PAGE, *COUNTING, DEPTH))
    model = config.build_model(settings)
    _print(_page(model, config.build_workload(model, settings), int(DEPTH.check(settings["depth"]))))
    return 0


def _page(model: BaseModel, work: Workload, depth: int = 1) -> str:
    """A page in five lines, then its table."""
    from modelmeter.catalogue import load_devices
    from modelmeter.report.tables import page_answer, page_table

    return f"{page_answer(model, work, load_devices())}\n\n{page_table(model, work, depth)}"


def _report(arguments: list[str], prog: str) -> int:
    models = config_names("report")
    if _wants_help(arguments):
        usage = f"usage: {prog} report MODEL [key=value ...]\n\nmodels: {', '.join(models)}"
        return _helped(arguments, f"{usage}\n{_keys(REPORT, 'run_report')}")
    name, *given = arguments
    choose("model with a report", name, models)
    _require_pairs(given, f"{prog} report")
    from modelmeter import config
    from modelmeter.publish import report_files
    from modelmeter.report.files import writable, write_all

    settings = checked(REPORT, config.compose("run_report", given, REPORT))
    folder = Path(settings.pop("out"))
    writable(folder)
    contents = report_files(name, f"modelmeter report {name}", **settings)
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
    if options.model:
        choose("model", options.model, config_names("model"))
    from modelmeter.publish import references

    equal, registry = True, references()
    for name in [options.model] if options.model else registry.REFERENCES:
        text, same = registry.run(name, vendor=options.vendor, device=options.device, layers_only=options.layers)
        _print(text)
        equal = equal and same
    return 0 if equal else 1
