"""Commands that take options, as `--out PAGE`: trace, gguf, inspect, score, validate; and plan, with --multirun."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from modelmeter.errors import InputError, choose
from modelmeter.folders import config_names, names_file

WHAT = {
    "trace": "any torch module as a model (needs the extra `validation`)",
    "gguf": "the GGUF file of a model's decoder, predicted by part and in total",
    "inspect": "a .gguf or .safetensors file, compared with a model",
    "score": "predicted times against published measurements, or those of kernels",
    "calibrate": "this machine measured, as a device for predicted times (needs the extra `validation`)",
    "validate": "the proof: counts of the real modules beside ours (needs the extra `validation`)",
}
"""What each is for."""


def trace(_: str, arguments: list[str], usage: str) -> None:
    import argparse

    parser = _parser(usage, "trace")
    parser.add_argument(
        "module", metavar="MODULE:NAME", help="a class of torch modules, such as transformers:LlamaForCausalLM"
    )
    parser.add_argument("config", nargs="?", help="its config.json, if it is one of transformers")
    parser.add_argument(
        "--input", action="append", default=[], metavar="'x[b 3 u v]'", help="an input with its named axes"
    )
    parser.add_argument(
        "--hint", action="append", default=[], metavar="u=224", help="the value of a size during the run"
    )
    parser.add_argument("-o", "--out", required=True, metavar="FILE.json", help="where the trace is written")
    options: argparse.Namespace = parser.parse_args(arguments)
    hints = dict(argument.partition("=")[::2] for argument in options.hint)
    for key, value in hints.items():
        if not value.isdigit() or not int(value):
            raise InputError(f"--hint takes NAME=NUMBER, not {key}={value}")
    try:
        from modelmeter.tracing import api
    except ModuleNotFoundError as error:
        how = "in a checkout, pip install -c constraints.txt '.[validation]'"
        raise InputError(f"{error.name} is not installed: {how}") from None
    sys.path.insert(0, "")  # the user names modules of the folder that they are in
    module = api.target(options.module, options.config)
    model = api.trace(module, *options.input, hints={key: int(value) for key, value in hints.items()})
    api.save(model, options.out)
    print("\n".join([f"{model.name} in {options.out}", *model.domain(), *model.notes]))


def _parser(usage: str, command: str) -> Any:
    """A parser whose errors are those of the command line."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; see {usage} --help")

    return Parser(usage, description=WHAT[command])


def validate(_: str, arguments: list[str], usage: str) -> int:
    parser = _parser(usage, "validate")
    parser.add_argument("model", nargs="?", help=f"one of: {', '.join(config_names('model'))}; all of them by default")
    parser.add_argument("--vendor", metavar="DIR", help="also compare with the vendor's own classes in DIR")
    parser.add_argument("--device", default="meta", help="meta (default); cpu or cuda: real tensors too, timed")
    parser.add_argument("--layers", action="store_true", help="layers only, not the stages at full size")
    parser.add_argument("--symbolic", action="store_true", help="ours less the traced module, for all sizes")
    options = parser.parse_args(arguments)
    if options.model and not names_file(options.model):
        choose("model", options.model, config_names("model"))
    from modelmeter.publish import references

    registry, status = references(), 0
    for name in [options.model] if options.model else registry.REFERENCES:
        if options.symbolic:
            from modelmeter.validate import symbolic

            text, equal = symbolic.run(name)
        else:
            text, equal = registry.run(name, vendor=options.vendor, device=options.device, layers_only=options.layers)
        print(text)
        status = status if equal else 1
    return status


def gguf(_: str, arguments: list[str], usage: str) -> int:
    from modelmeter.checkpoints import commands

    return _told(commands.gguf(_parser(usage, "gguf"), arguments))


def inspect(_: str, arguments: list[str], usage: str) -> int:
    from modelmeter.checkpoints import commands

    return _told(commands.inspect(_parser(usage, "inspect"), arguments))


def calibrate(_: str, arguments: list[str], usage: str) -> int:
    parser = _parser(usage, "calibrate")
    parser.add_argument("--device", default="cpu", help="cpu (default): this machine's processor; cuda: its GPU")
    parser.add_argument("-o", "--out", required=True, metavar="FILE.yaml", help="where the device is written")
    parser.add_argument("--engine", default="torch", help="torch (default), or llama_cpp through the package xllamacpp")
    parser.add_argument("--threads", type=int, default=1, help="threads that run (default: 1)")
    parser.add_argument("--seconds", type=float, help="for all of it, as if alone (default: 60)")
    parser.add_argument("--formats", help="of torch, such as fp32,bf16")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= 1024 or not (options.seconds is None or 5 <= options.seconds <= 3600):
        raise InputError("--threads must be 1 to 1024 and --seconds 5 to 3600")
    path = Path(options.out)
    if path.suffix != ".yaml" or not path.parent.is_dir():
        raise InputError(f"--out must be a .yaml file in a folder that is there, not {options.out}")
    from modelmeter.calibrate import run

    forms = options.formats.split(",") if options.formats else None
    told = lambda text: print(text, file=sys.stderr, flush=True)
    asked = {"threads": options.threads, "seconds": options.seconds, "formats": forms}
    try:
        found = run.calibrated(options.engine, device=options.device, told=told, **asked)
    except run.Absent as error:
        print(f"{usage}: {error}", file=sys.stderr)
        return 1
    path.write_text(run.text_of(found, f"modelmeter calibrate {' '.join(arguments)}"), encoding="utf-8")
    errors = ", ".join(f"{name} {error:.1%}" for name, error in run.errors_of(found["laws"]).items())
    print(f"{found['title']} in {path}\nmedian errors of the fit: {errors}")
    return 0


def score(_: str, arguments: list[str], usage: str) -> None:
    parser = _parser(usage, "score")
    parser.add_argument("what", nargs="*", metavar="[FILE.csv | kernels FOLDER]",
                        help="measurements of requests (the published ones that are shipped, if none are named), or "
                        "`kernels` and the folder of Parquet files of measured kernels")  # fmt: skip
    parser.add_argument("--out", metavar="PAGE", help="write the tables into this page of the docs, below its mark")
    options = parser.parse_args(arguments)
    kernels = options.what[:1] == ["kernels"]
    if len(options.what) != 2 if kernels else len(options.what) > 1:
        raise InputError(f"give `kernels FOLDER`, one FILE.csv or nothing, not {' '.join(options.what)!r}")
    from modelmeter.publish import kernel_score, request_score
    from modelmeter.seconds import page

    told = lambda text: print(text, file=sys.stderr, flush=True)
    text = kernel_score(options.what[1], told) if kernels else request_score(*options.what)
    page.write(Path(options.out), text if kernels else f"```text\n{text}\n```") if options.out else print(text)


def plan(named: str, given: list[str], usage: str) -> int:
    from modelmeter import config, publish
    from modelmeter.plan_settings import KEYS
    from modelmeter.report.files import write_all

    def job(settings: Mapping[str, Any], number: str, overrides: Sequence[str]) -> None:
        text, table, met = publish.plan_page(settings)
        out, command = settings["out"] or ("reports/plan" if number else None), " ".join([usage, named, *overrides])
        print(text)
        if out:
            write_all(Path(out) / number, {"plan.txt": f"{command}\n\n{text}\n", "plans.csv": table})
            print(f"in {Path(out) / number}")
        status.append(0 if met else 1)

    status: list[int] = []
    fixed, given = config.with_files([f"model={named}"]), config.listed(given, "devices")
    if not any(argument.startswith("-") for argument in given):
        job(config.compose("plan", [*fixed, *given], KEYS), "", given)
    else:
        config.hydra_main("plan", given, fixed, job, KEYS)
    return max(status, default=0)


def _told(answer: tuple[str, int]) -> int:
    print(answer[0])
    return answer[1]
