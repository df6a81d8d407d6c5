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
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import modelmeter

STAGES = ("vision", "prefill", "decode")
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


def main() -> None:
    """Print the table."""
    model = modelmeter.load_model("deepseek_ocr")
    rows = []

    def sweep() -> None:
        many = sizes(CHUNK)
        page = model.workload(grid=(many.pop("grid_h"), many.pop("grid_w")), **many)
        for stage in STAGES:
            model.cost(stage, page)

    rows.append((f"whole model, arrays of {CHUNK:,} points", rate(CHUNK, median(sweep))))
    page = model.workload(grid="2x3")
    seconds = median(lambda: [model.cost(stage, page) for stage in STAGES], 25)
    rows.append(("whole model, one exact evaluation", rate(1, seconds)))
    start = time.perf_counter()
    compiled = model.compile()
    rows.append(("`model.compile()`", f"{time.perf_counter() - start:.2f} s, once"))
    million = sizes(1_000_000)
    rows.append(("compiled, arrays of 1,000,000 points", rate(1_000_000, median(lambda: compiled(**million)))))
    one = {"batch": 1, "grid_h": 2, "grid_w": 3, "prompt_tokens": 10, "decode_steps": 100}
    seconds = median(lambda: [compiled(**one) for _ in range(1000)], 15)
    rows.append(("compiled, one exact evaluation", rate(1000, seconds)))
    with tempfile.TemporaryDirectory() as out:
        for label, arguments in (
            ("`--help`", ["sweep", "--help"]),
            ("a wrong sweep name", ["sweep", "vision_crop"]),
            ("`vision_crops figures=false`", ["sweep", "vision_crops", "figures=false", f"out={out}"]),
            ("`vision_crops` with figures", ["sweep", "vision_crops", f"out={out}"]),
        ):
            rows.append((label, milliseconds(arguments)))
        quiet = ["figures=false", f"out={out}", "runtime=flash"]
        some = ["prefill_tokens=256", "decode_tokens=100,1000", "batch=1,8", "heads=10x10,10x5", *quiet, "--multirun"]
        rows.append(("`sequence`: 144 points in one job", milliseconds(["sweep", "sequence", *quiet], 5)))
        for launcher in ("basic", "joblib"):
            arguments = ["sweep", "sequence", *some, f"hydra/launcher={launcher}"]
            rows.append((f"`sequence`: 8 points as 8 jobs, launcher {launcher}", milliseconds(arguments, 5)))
    if "--reference" in sys.argv:
        import torch

        from modelmeter.validate.case import tensor_core_flops
        from modelmeter.validate.deepseek_ocr_stages import language_case, vision_case

        cases = [vision_case(model, page), language_case(model, page), language_case(model, page, steps=1)]
        with torch.device("meta"), torch.no_grad():
            built = [case.build() for case in cases]
            seconds = median(
                lambda: [
                    tensor_core_flops(lambda c=c, b=b: c.run(b[0], *b[1])) for c, b in zip(cases, built, strict=True)
                ],
                3,
            )
        rows.append(("FlopCounterMode on the modules (meta device)", rate(1, seconds)))
    print(f"Measured on {machine()}; median (range).\n\n| what | speed |\n|---|---|")
    print("\n".join(f"| {what} | {speed} |" for what, speed in rows))


if __name__ == "__main__":
    main()
