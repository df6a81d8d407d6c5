"""The whole of a calibration: what is measured, the device that comes of it, its YAML."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import process_time
from typing import Any

from modelmeter import __version__
from modelmeter.calibrate import fits, machine
from modelmeter.calibrate.timing import Answer, Processor, asked
from modelmeter.catalogue import load_devices
from modelmeter.config import read_yaml
from modelmeter.device import Device
from modelmeter.errors import InputError, choose
from modelmeter.folders import config_dir

ENGINES = {"torch": "eager sdpa flash", "llama_cpp": "llama_cpp llama_cpp_scores"}
"""Engines that are measured, and the runtimes of theirs."""
DEVICES = ("cpu", "cuda")
FORMATS = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("bf16", "fp16", "fp32", "tf32", "fp8", "int8")}
PARTS, LEAST = 40, 2e8
"""What part of a GPU's memory one format's operands may take, and how many bytes they are at least."""
HOST = 0.2
"""Share of the time that decoders take, for what the host does."""
Told = Callable[[str], None]


class Absent(InputError):
    """What was to be measured is not there."""


def calibrated(
    engine: str = "torch", *, device: str = "cpu", threads: int = 1, seconds: float | None = None,
    formats: Sequence[str] | None = None, told: Told = lambda text: None, settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The YAML of this machine's processor, or of its GPU ("cuda"), as a device, measured with an engine.

    `settings` are those of configs/calibrate.yaml, which says what is measured; `seconds` are those of all of it.
    Raises InputError for an engine that is not installed, a format that is not measured, a GPU that is not there.
    """
    choose("device", device, DEVICES)
    choose("engine", engine, ENGINES if device == "cpu" else ("torch",))
    begun = process_time()
    wanted = {**read_yaml(config_dir() / "calibrate.yaml"), **(settings or {})}
    wanted |= wanted["cuda"] if device == "cuda" else {}
    wanted |= {"seconds": seconds or wanted["seconds"], "formats": list(formats or wanted["formats"])}
    for form in wanted["formats"]:
        choose("format", form, FORMATS[device])
    if engine == "llama_cpp":
        return _llama_cpp(wanted, threads, told)
    return _gpu(wanted, told) if device == "cuda" else _torch(wanted, threads, begun, told)


def _torch(wanted: Mapping[str, Any], threads: int, begun: float, told: Told) -> dict[str, Any]:
    """Kernels, then decoders, in the seconds of the process since it had `begun`."""
    torch, host, kernels = _imported()
    before, end = torch.get_num_threads(), begun + float(wanted["seconds"]) * threads
    torch.set_num_threads(threads)
    try:
        bench = Processor(threads)
        every = (
            q for form in wanted["formats"] for make in (kernels.levels, kernels.questions) for q in make(wanted, form)
        )
        with torch.inference_mode():
            answers = asked(every, (1 - HOST) * (end - process_time()) / threads, bench, told)
        content = _content(f"torch {torch.__version__}", "torch", threads)
        content |= _figures(answers) | {"laws": content["laws"] | fits.laws_of(answers)}
        told("decoders of transformers, for what the host takes")
        device, form = Device(name="calibrated", **content), wanted["formats"][0]
        return content | {"host": host.host_of(device, wanted, form, host.stepping(wanted, form, until=end))}
    finally:
        torch.set_num_threads(before)


def _gpu(wanted: dict[str, Any], told: Told) -> dict[str, Any]:
    torch, host, _ = _imported()
    if not torch.cuda.is_available():
        raise Absent("torch finds no GPU here: install its build for CUDA or ROCm, or give --device cpu")
    from modelmeter.calibrate import facts, gpu, graphics

    if wanted["formats"][0] == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        wanted["formats"] = ["fp16", *(form for form in wanted["formats"] if form not in ("bf16", "fp16"))]
    found = facts.facts_of(torch.cuda.get_device_properties(0))
    wanted["pool"] = min(float(wanted["pool"]), max(found.memory_bytes / PARTS, LEAST))
    seconds, before = (1 - HOST) * float(wanted["seconds"]), torch.get_float32_matmul_precision()
    try:
        with torch.inference_mode():
            content = gpu.measured(wanted, found, load_devices(), "cuda", graphics.Graphics(), seconds, told)
    finally:
        torch.set_float32_matmul_precision(before)
    told("decoders of transformers, for what the host takes")
    device, form = Device(name="calibrated", **content), wanted["formats"][0]
    launches = host.host_of(device, wanted, form, host.stepping(wanted, form, "cuda"))
    engine, date = f"torch {torch.__version__}", datetime.date.today().isoformat()
    source = f"laws and host measured by modelmeter calibrate {__version__} with {engine} on {date}"
    return content | {
        "title": f"{found.title}, {engine}",
        "source": f"{source}; {content['source']}",
        "host": content["host"] | launches,
    }


def _imported() -> tuple[Any, Any, Any]:
    """torch, and what of this package needs it. Raises InputError where it is not installed."""
    try:
        import torch

        from modelmeter.calibrate import host, kernels
    except ModuleNotFoundError as error:
        how = "in a checkout, pip install -c constraints.txt '.[validation]'"
        raise InputError(f"{error.name} is not installed: {how}") from None
    return torch, host, kernels


def _llama_cpp(wanted: Mapping[str, Any], threads: int, told: Told) -> dict[str, Any]:
    try:
        import xllamacpp as engine

        from modelmeter.calibrate import llama_cpp
    except ModuleNotFoundError as error:
        how = "in a checkout, pip install -c constraints.txt '.[engines]'"
        raise InputError(f"{error.name} is not installed: {how}") from None
    laws, host = llama_cpp.measured(wanted["llama_cpp"], float(wanted["seconds"]), threads, told)
    content = _content(f"llama.cpp in xllamacpp {engine.__version__}", "llama_cpp", threads)
    fastest = 1 / median(one["products"] for one in laws["matrix"].values())
    memory = 1 / min(one["weights"] for one in laws["vector"].values())
    peaks = {"tensor_flops_per_s": fastest, "cuda_flops_per_s": fastest, "memory_bytes_per_s": memory}
    return content | {key: fits.digits(v) for key, v in peaks.items()} | {"laws": content["laws"] | laws, "host": host}


def _content(engine: str, name: str, threads: int) -> dict[str, Any]:
    """What a device's YAML says whatever was measured."""
    date, title = datetime.date.today().isoformat(), machine.processor_name()
    core = "1 thread" if threads == 1 else f"{threads} threads"
    return {
        "title": f"{title}, {core}, {engine}",
        "memory_bytes": machine.memory_bytes(),
        "source": f"measured by modelmeter calibrate {__version__} with {engine} on {date}",
        "confidence": "A",
        "architecture": "CPU",
        "multiprocessors": threads,
        "laws": {"engine": engine, "runtimes": ENGINES[name], "date": date},
    }


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """The fastest that was measured, as a datasheet's figures: peaks of products, bandwidth, the last cache."""
    peaks: dict[str, float] = {}
    for answer in answers:
        work, form = answer.question.work, answer.question.variant
        if answer.question.law == "matrix":
            speed = 2 * work["m"] * work["n"] * work["k"] / answer.seconds
            peaks[form] = max(peaks.get(form, 0.0), fits.digits(speed))
    levels = fits.levels_of([a for a in answers if a.question.variant == answers[0].question.variant])
    read = [a.question.work["weights"] / a.seconds for a in answers if a.question.law == "vector"]
    known = {form: peak for form, peak in peaks.items() if form in ("fp32", "bf16")}
    some = next(iter(peaks.values()))
    return {
        "tensor_flops_per_s": known.get("bf16", some),
        "cuda_flops_per_s": known.get("fp32", some),
        "memory_bytes_per_s": fits.digits(max(*read, levels[max(levels)])),
        "peaks": known,
        "l2_bytes": fits.digits(machine.last_cache(levels)),
    }


def errors_of(laws: Mapping[str, Any]) -> dict[str, float]:
    """The median error of the fit of each law in each format that was measured."""
    found: dict[str, float] = {}
    names = laws["measured"].split() if "measured" in laws else [n for n in laws if isinstance(laws[n], Mapping)]
    for law, own in ((name, laws[name]) for name in names):
        each = own.get("error") or {form: one["error"] for form, one in own.items()}
        found |= {f"{law} {form}": float(error) for form, error in each.items()}
    return found


def text_of(content: Mapping[str, Any], command: str) -> str:
    """A device's YAML."""
    import yaml

    body = yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=118, allow_unicode=True)
    return f"# {command}\n# {content['title']}\n{body}"
