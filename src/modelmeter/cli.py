"""The command line. Bad input ends with a sentence on stderr and status 2.

A command imports what it needs itself, so that `--help` is instant and says what it says without Hydra or NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelmeter import __version__, tools
from modelmeter.errors import InputError, choose
from modelmeter.folders import comment_of, commented_yaml, config_names, names_file

if TYPE_CHECKING:
    from modelmeter.settings import Setting


def main(argv: Sequence[str] | None = None, prog: str = "modelmeter") -> int:
    """Run a command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "--version"):
            print(f"modelmeter {__version__}" if "--version" in arguments else _overview(prog))
            status = 0 if arguments else 2
        else:
            status = _run(choose("command", arguments[0], COMMANDS), arguments[1:], prog)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except (InputError, OSError) as error:  # OSError: standard output that cannot be written
        print(f"{prog}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; earlier results are as they were", file=sys.stderr)
        return 130


def _run(name: str, arguments: list[str], prog: str) -> int:
    """A command on what is named first; whoever said nothing at all gets help and has not asked for it."""
    command, usage = COMMANDS[name], prog if prog.endswith(f".{name}") else f"{prog} {name}"
    if not command.group:
        return command.run("", arguments, usage) or 0
    first = arguments[0] if arguments else ""
    named = first if not first.startswith("-") and ("=" not in first or Path(first).exists()) else ""
    help_wanted = not arguments or any(a in ("-h", "--help") for a in arguments)
    a_file = command.group == "model" and names_file(named)
    if (named or not help_wanted) and not a_file:
        choose(command.kind, named, config_names(command.group))
    if help_wanted:
        print("\n".join(command.help(usage, named)))
        return 0 if arguments else 2
    return command.run(named, arguments[1:], usage) or 0


def _overview(prog: str) -> str:
    lines = [f"usage: {prog} COMMAND ...", "", "commands:", *(_line(name, c.what) for name, c in COMMANDS.items())]
    return "\n".join([*lines, "", f"{prog} COMMAND --help tells more."])


def _line(left: str, right: str) -> str:
    return f"  {left:30} {right}"


def _keys(settings: Sequence[Setting], *files: str) -> list[str]:
    """The keys of a command: defaults from its YAML files, help from the declarations."""
    from modelmeter.settings import CHOICES, IN_YAML, shown

    defaults: dict[str, Any] = {setting.name: "NAME" for setting in CHOICES}
    for file in files:
        values = commented_yaml("", file)
        defaults |= {key: values[stored] for key, stored in IN_YAML.items() if stored in values}
        for key, value in values.items():
            parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            declared = {s.name for s in settings}.isdisjoint(parts)
            defaults |= {key: f"{{{', '.join(value)}}}"} if declared and isinstance(value, dict) else parts
    lines = [_line(f"{s.name}={shown(defaults[s.name])}", s.help) for s in settings if s.name in defaults]
    return ["", "keys (any value of the configuration can be overridden as key=value):", *lines]


def _require_pairs(arguments: Iterable[str], usage: str) -> None:
    for argument in (argument for argument in arguments if "=" not in argument):
        raise InputError(f"{argument!r} is not key=value; see {usage} --help")


def _sweep_help(usage: str, named: str) -> list[str]:
    from modelmeter.settings import CHOICES, COUNTING, OUTPUT, TIMING

    lines = [f"usage: {usage} NAME [key=value ...] [--multirun]", "", "sweeps:"]
    lines += [_line(name, comment_of(commented_yaml("sweep", name))[1]) for name in config_names("sweep")]
    if not named:
        keys = _keys((*CHOICES, *COUNTING, *TIMING, *OUTPUT), "counting", "timing", "output")
        return [*lines, *keys, "", f"{usage} NAME --help lists the keys of a sweep's own."]
    from modelmeter.publish import settings_of

    return [*lines, *_keys((*CHOICES, *settings_of(named)), "page", "counting", "output", "timing", f"sweep/{named}")]


def _sweep(named: str, given: list[str], usage: str) -> None:
    from modelmeter import config, publish
    from modelmeter.report.files import writable

    def job(settings: Mapping[str, Any], number: str, overrides: Sequence[str]) -> None:
        parent = folder / number if number else _folder(settings["out"])
        _run_sweep(named, settings, " ".join([usage, named, *overrides]), parent)

    fixed, declared = [f"sweep@_global_={named}"], publish.settings_of(named)
    folder = _folder(next((a.partition("=")[2].strip("'\"") for a in given if a.startswith("out=")), None))
    if not any(a.startswith("-") for a in given):
        given = config.listed(given, "device", "devices")
        return job(config.compose("run_sweep", [*fixed, *given], declared), "", given)
    writable(folder)
    fixed.append("hydra.sweep.dir='{}'".format(str(folder / ".hydra").replace("'", "\\'")))  # its own files
    config.hydra_main("run_sweep", given, fixed, job, declared)


def _run_sweep(name: str, settings: Mapping[str, Any], command: str, parent: Path) -> None:
    from modelmeter import config, publish
    from modelmeter.report.files import ENGLISH, markdown_table, obsolete_files, table_files, write_all
    from modelmeter.report.tables import answer

    if settings["png"] and not settings["figures"]:
        raise InputError("png=true contradicts figures=false")
    model = config.build_model(settings)
    tables, drawn = publish.sweep_tables(name, model, settings), dict[str, str | bytes]()
    if settings["figures"]:
        from modelmeter.report.figures import figures
        from modelmeter.report.ranked import ranked_figures

        for table in tables:
            formats = ("svg", "png") if settings["png"] else ("svg",)
            drawn |= figures(table, formats) | ranked_figures(table, formats)
    contents = {file: text for table in tables for file, text in table_files(table, command, list(drawn)).items()}
    contents |= drawn
    folder = parent / name
    write_all(folder, contents, obsolete_files(folder, tables[0].name, contents))
    print("\n".join(map(ENGLISH.finding, answer(tables))) + "\n")
    own = any(settings.get(key) is not None for key in ("image", "image_size", "grid"))
    if tables[0].printed:
        print(markdown_table(tables[0].shown, columns=tables[0].readable) + "\n")
    elif "image" in settings and own:
        work = config.build_workload(model, dict(settings) | {"runtime": tables[0].kind})
        print(publish.page_text(model, work) + "\n")
    print(f"{len(tables[0].rows)} rows, {', '.join(contents)}\nin {folder}")


def _folder(out: str | None) -> Path:
    from datetime import datetime

    return Path("reports/sweep") / datetime.now().strftime("%Y%m%d-%H%M%S") if out is None else Path(out)


def _model_help(usage: str, *keys: str) -> list[str]:
    return [f"usage: {usage} MODEL [key=value ...]", "", f"models: {', '.join(config_names('model'))}", *keys]


def _cost_help(usage: str, named: str) -> list[str]:
    from modelmeter.catalogue import dims_with_sources
    from modelmeter.config import chosen
    from modelmeter.settings import CHOICES, COUNTING, DEPTH, REQUEST

    lines = _model_help(usage, *_keys((*CHOICES[1:], *REQUEST, *COUNTING, DEPTH), "page", "counting", "cost"))
    if not named or names_file(named):
        return [*lines, "", f"{usage} MODEL --help lists the numbers of a model of these and where they come from."]
    files = chosen(named)[0].items()
    parts = [_line(f"{group}={file}", comment_of(commented_yaml(group, file))[1]) for group, file in files]
    numbers = [_line(f"{key}={value}", source) for key, value, source in dims_with_sources(named)]
    return [*lines, "", f"{named} and its numbers:", *parts, *numbers]


def _cost(named: str, given: list[str], usage: str) -> None:
    from modelmeter import config
    from modelmeter.publish import page_text
    from modelmeter.settings import COUNTING, DEPTH, REQUEST

    _require_model(named, given, usage)
    own = _own_sizes(named)
    sizes = {key: value for key, _, value in (argument.partition("=") for argument in given) if key in own}
    others = [argument for argument in given if argument.partition("=")[0] not in own]
    settings = config.compose("cost", [f"model={named}", *others], (*REQUEST, *COUNTING, DEPTH))
    model = config.build_model(settings)
    depth = int(DEPTH.check(settings["depth"]))
    if not own:
        return print(page_text(model, config.build_workload(model, settings), depth))
    from modelmeter.models.traced import TracedModel
    from modelmeter.report.tables import page_table

    if isinstance(model, TracedModel):
        model = model.at(**{key: int(value) if value.isdigit() else value for key, value in sizes.items()})
        work = config.build_workload(model, settings)
        head = f"{model.name} at {', '.join(f'{key}={value}' for key, value in sizes.items())}; {model.basis(work)}"
        print(page_table(model, work, depth, head))


def _require_model(named: str, given: Iterable[str], usage: str) -> None:
    """Raise InputError for what is no key=value or another model."""
    _require_pairs((argument for argument in given if not argument.startswith("-")), usage)
    for argument in (argument for argument in given if argument.startswith("model=")):
        raise InputError(f"give the model once, not {named} and {argument}")


def _device_help(usage: str, named: str) -> list[str]:
    from modelmeter.settings import CHOICES, COUNTING, FITS, REQUEST, SPLIT, TIME

    command = usage.rpartition(" ")[2]
    own = {"fits": FITS, "split": SPLIT, "time": TIME}[command]
    keys = _keys((*CHOICES[1:], *own, *REQUEST, *COUNTING), "page", "counting", command)
    return [*_model_help(usage, *keys), "", f"devices: {', '.join(config_names('device'))}"]


def _on_devices(named: str, given: list[str], usage: str) -> None:
    from modelmeter.publish import DEVICE_PAGES

    _require_model(named, given, usage)
    print(DEVICE_PAGES[usage.rpartition(" ")[2]](named, given))


def _profile(_: str, arguments: list[str], usage: str) -> int:
    """A file and the model that it is of, which `model=` names."""
    from modelmeter.settings import CHOICES, COUNTING, PROFILE, REQUEST

    if not arguments or any(a in ("-h", "--help") for a in arguments):
        files = (
            "FILE: Chrome JSON of torch.profiler (.json or .json.gz), SQLite or CSV (cuda_gpu_trace) of Nsight Systems"
        )
        keys = _keys((*CHOICES, *PROFILE, *REQUEST, *COUNTING), "page", "counting", "profile")
        print("\n".join([f"usage: {usage} FILE model=MODEL [key=value ...]", "", files, *keys]))
        return 0 if arguments else 2
    from modelmeter.publish import profile_page

    file, *given = arguments
    models = [argument.partition("=")[2] for argument in given if argument.startswith("model=")]
    if "=" in file or len(models) != 1:
        raise InputError(f"give the trace first, then the model that it is of: {usage} FILE model=MODEL")
    _require_pairs(given, usage)
    print(profile_page(file, models[0], [a for a in given if not a.startswith("model=")]))
    return 0


def _plan_help(usage: str, named: str) -> list[str]:
    from modelmeter.plan_settings import KEYS
    from modelmeter.settings import CHOICES

    files = "page", "counting", "plan"
    command, keys = f"{usage} MODEL [key=value ...] [--multirun]", _keys((*CHOICES[1:], *KEYS), *files)
    models, devices = (f"{group}s: {', '.join(config_names(group))}" for group in ("model", "device"))
    return [f"usage: {command}", "", models, *keys, "", devices]


def _plan(named: str, given: list[str], usage: str) -> int:
    _require_model(named, given, usage)
    return tools.plan(named, given, usage)


def _compare_help(usage: str, named: str) -> list[str]:
    from modelmeter.publish import settings_of
    from modelmeter.settings import CHOICES

    files = "page", "counting", "output", "timing", "sweep/compare"
    return _model_help(usage, *_keys((*CHOICES[1:], *settings_of("compare")), *files))


def _compare(named: str, given: list[str], usage: str) -> None:
    from modelmeter.config import listed

    _require_model(named, given, usage)
    keys = [f"model={named}", *listed(given, "runtime", "weights")]
    _sweep("compare", keys, f"{usage.rpartition(' ')[0]} sweep")


def _own_sizes(named: str) -> tuple[str, ...]:
    """The sizes of a traced module that is no language model."""
    from modelmeter.models.trace_json import is_trace
    from modelmeter.models.traced import traced_model

    return traced_model(named).sizes if names_file(named) and is_trace(named) else ()


def _report_help(usage: str, _: str) -> list[str]:
    from modelmeter.settings import REPORT

    models = ", ".join(config_names("report"))
    return [f"usage: {usage} MODEL [key=value ...]", "", f"models: {models}", *_keys(REPORT, "run_report")]


def _report(named: str, given: list[str], usage: str) -> None:
    from modelmeter.config import compose
    from modelmeter.publish import report_files
    from modelmeter.report.files import writable, write_all
    from modelmeter.settings import REPORT, checked

    _require_pairs(given, usage)
    settings = checked(REPORT, compose("run_report", given, REPORT))
    folder = Path(settings.pop("out"))
    writable(folder)
    contents = report_files(named, f"modelmeter report {named}", **settings)
    write_all(folder, contents)
    print(f"{len(contents)} files, {', '.join(n for n in contents if n.endswith('.md'))}\nin {folder}")


class Command(NamedTuple):
    """A command: `run` and `help` are given what is named first, a `kind` of thing that is a file of `group`."""

    what: str
    run: Callable[[str, list[str], str], int | None]
    kind: str = ""
    group: str = ""
    help: Callable[[str, str], list[str]] = lambda usage, named: []


COMMANDS = {
    "sweep": Command("a named sweep: tables and figures over a grid of workloads",
                     _sweep, "sweep", "sweep", _sweep_help),
    "cost": Command("the costs of one page by stage and component", _cost, "model", "model", _cost_help),
    "fits": Command("whether a request fits into the memory of devices, with what batch and context at most",
                    _on_devices, "model", "model", _device_help),
    "split": Command("what each device or process of a placed model holds, and what crosses between them",
                     _on_devices, "model", "model", _device_help),
    "time": Command("how long a request takes on devices: TTFT, TPOT, what binds, the dearest kernels",
                    _on_devices, "model", "model", _device_help),
    "profile": Command("a trace of torch.profiler or Nsight Systems beside the prediction, kernel by kernel", _profile),
    "plan": Command("which devices, how many, in which form and batch bear a load, and what that costs",
                    _plan, "model", "model", _plan_help),
    "compare": Command("runtimes and formats of weights side by side: a table and a figure",
                       _compare, "model", "model", _compare_help),
    "report": Command("the architecture and performance report of a model, with all sweeps and figures",
                      _report, "model with a report", "report", _report_help),
    "trace": Command(tools.WHAT["trace"], tools.trace),
    "gguf": Command(tools.WHAT["gguf"], tools.gguf),
    "inspect": Command(tools.WHAT["inspect"], tools.inspect),
    "score": Command(tools.WHAT["score"], tools.score),
    "calibrate": Command(tools.WHAT["calibrate"], tools.calibrate),
    "validate": Command(tools.WHAT["validate"], tools.validate),
}  # fmt: skip
