"""Measure how fast ModelMeter is, in medians of one run, and print it as Markdown with the machine.

python scripts/benchmark.py [--reference]   (--reference adds FlopCounterMode, needs the validation extra)
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import modelmeter

CHUNK = 65_536


def median(run: Callable[[], object], repeats: int = 7) -> tuple[float, float, float]:
    """Median, least and most seconds of a call, after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times), max(times)


def machine() -> str:
    """Processor, cores and versions."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, one core of {os.cpu_count()}, Python {platform.python_version()}, NumPy {np.__version__}"


def rate(points: int, seconds: tuple[float, float, float]) -> str:
    """Points a second: median (least to most)."""
    middle, fast, slow = (f"{points / s:,.0f}" if points / s >= 10 else f"{points / s:.2f}" for s in seconds)
    return f"{middle} a second ({slow} to {fast})"


def milliseconds(arguments: list[str], repeats: int = 9) -> str:
    """The time of a command in a new process: median (range)."""
    command = [sys.executable, "-m", "modelmeter", *arguments]
    middle, fast, slow = median(lambda: subprocess.run(command, capture_output=True, check=False), repeats)
    return f"{middle * 1e3:.0f} ms ({fast * 1e3:.0f} to {slow * 1e3:.0f})"


def sizes(points: int) -> dict[str, np.ndarray]:
    """Random workload sizes."""
    rng = np.random.default_rng(0)
    names = {"batch": 9, "grid_h": 6, "grid_w": 6, "prompt_tokens": 50, "decode_steps": 1000}
    return {name: rng.integers(1, top, points).astype(np.float64) for name, top in names.items()}


def first_results() -> Iterator[tuple[str, str]]:
    """Loading a model and its first evaluation, in this process."""
    start = time.perf_counter()
    model = modelmeter.load_model("deepseek_ocr")
    yield "`load_model`", f"{(time.perf_counter() - start) * 1e3:.0f} ms"
    page = model.workload(grid="2x3")
    start = time.perf_counter()
    model.costs(page)
    yield "whole model, the first evaluation", f"{(time.perf_counter() - start) * 1e3:.0f} ms"


def evaluations(model: Any) -> Iterator[tuple[str, str]]:
    """Arrays of points, and points one by one."""
    for points in (CHUNK, 1_000_000):
        many = sizes(points)
        page = model.workload(grid=(many.pop("grid_h"), many.pop("grid_w")), **many)
        speed = rate(points, median(lambda page=page: model.costs(page)))
        yield f"whole model, arrays of {points:,} points", speed
    page = model.workload(grid="2x3")
    yield "whole model, exact", rate(1000, median(lambda: [model.costs(page) for _ in range(1000)], 15))
    works = [model.workload(grid="2x3", prompt_tokens=tokens) for tokens in range(1, 1001)]
    seconds = median(lambda: [model.cost("prefill", work) for work in works], 15)
    yield "`model.cost` of a stage, exact, new workloads", rate(1000, seconds)


def commands(out: str) -> Iterator[tuple[str, str]]:
    """The command line in new processes."""
    yield "`--help`", milliseconds(["sweep", "--help"])
    yield "a wrong sweep name", milliseconds(["sweep", "vision_crop"])
    yield "`vision_crops figures=false`", milliseconds(["sweep", "vision_crops", "figures=false", f"out={out}"])
    yield "`vision_crops` with figures", milliseconds(["sweep", "vision_crops", f"out={out}"])
    quiet = ["figures=false", f"out={out}", "runtime=flash"]
    some = ["prefill_tokens=256", "decode_tokens=100,1000", "batch=1,8", "heads=10x10,10x5", *quiet, "--multirun"]
    yield "`sequence`: 144 points in one job", milliseconds(["sweep", "sequence", *quiet], 5)
    for launcher in ("basic", "joblib"):
        arguments = ["sweep", "sequence", *some, f"hydra/launcher={launcher}"]
        yield f"`sequence`: 8 points as 8 jobs, launcher {launcher}", milliseconds(arguments, 5)


def reference_modules(model: Any) -> Iterator[tuple[str, str]]:
    """FlopCounterMode on the modules, for comparison."""
    import torch

    from modelmeter.validate.counters import tensor_core_flops
    from modelmeter.validate.deepseek_ocr_stages import language_case, vision_case

    page = model.workload(grid="2x3")
    cases = [vision_case(model, page), language_case(model, page), language_case(model, page, step=1)]
    with torch.device("meta"), torch.no_grad():
        runs = [(case, *case.build()) for case in cases]
        count = lambda: [tensor_core_flops(lambda c=c, m=m, i=i: c.run(m, *i)) for c, m, i in runs]
        yield "FlopCounterMode on the modules (meta device)", rate(1, median(count, 3))


def main() -> None:
    """Print the table."""
    model = modelmeter.load_model("deepseek_ocr")
    rows = [*first_results(), *evaluations(model)]
    with tempfile.TemporaryDirectory() as out:
        rows += commands(out)
    if "--reference" in sys.argv:
        rows += reference_modules(model)
    print(f"Measured on {machine()}; median (range).\n\n| what | speed |\n|---|---|")
    print("\n".join(f"| {what} | {speed} |" for what, speed in rows))


if __name__ == "__main__":
    main()
