"""How far whole steps are off: models put together from measured kernels, beside what the laws say of the same kernels.

python scripts/steps_check.py DATA_FOLDER

Each kernel of a step of a model becomes the nearest one that was measured (of its law and format, on a device); the
measured seconds of a step are added up, and those that the laws predict with and without the device in the fit. The
factors of seconds/unknowns.yaml that are named [steps] and [other] are the percentiles that this prints. DATA_FOLDER
is that of scripts/fit_laws.py. Takes two minutes.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from modelmeter.catalogue import load_devices
from modelmeter.config import load_model
from modelmeter.seconds.asked import asked_of, work_of
from modelmeter.seconds.constants import RANGES, law_of, spread_of
from modelmeter.seconds.measured import Measured, read
from modelmeter.seconds.train import NVIDIA, TRAINED, train

MODELS = (
    "llama_3_2_1b", "llama_3_1_8b", "qwen2_5_7b", "qwen3_14b", "qwen2_5_32b", "llama_3_1_70b", "qwen3_0_6b",
    "mistral_7b",
)  # fmt: skip
STEPS = {
    "decode": ((1, 512), (1, 4096), (8, 1024), (32, 2048), (128, 1024), (256, 512)),
    "prefill": ((1, 128), (1, 1024), (1, 8192), (4, 2048)),
}
"""Batches and tokens."""
SHAPE = {
    "product": ("m", "n", "k"),
    "prefill": ("batch", "heads", "kv_heads", "width", "s", "t"),
    "decode": ("batch", "heads", "kv_heads", "width", "t"),
}
FAR = 1.5
"""Logarithm of a ratio of sizes beyond which no measured kernel stands for another."""
OTHERS = (
    ("decode", "rtx_pro_6000_server", "fp8.flashinfer", "fp8.triton"),
    ("prefill", "rtx_pro_6000_server", "fp8.flashinfer", "fp8.triton"),
    ("prefill", "h100_sxm", "bf16", "bf16.fa4"),
    ("mixture", "h100_sxm", "fp8_block", "fp8_block.triton"),
    ("mixture", "h100_sxm", "mxfp4_wo", "mxfp4_wo.triton"),
)
"""Two implementations of one kernel: each is predicted by the law of the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    groups = read(parser.parse_args().folder, {device.name: device for device in load_devices()})
    names = list(dict.fromkeys(g.device.name for g in groups))
    fitted = {(law, ""): train([g for g in groups if g.law == law], TRAINED[law]) for law in (*SHAPE, "mixture")}
    for law in SHAPE:
        for name in names:
            fitted[law, name] = train([g for g in groups if g.law == law], TRAINED[law], own=False, leave=name)
    known = {(g.law, g.variant, g.device.name): g for g in groups}
    nvidia = [name for name in names if next(g.device.architecture for g in groups if g.device.name == name) in NVIDIA]
    for title, of in (("NVIDIA", nvidia), ("others", [name for name in names if name not in nvidia])):
        found = np.array([row for name in of for row in steps(known, fitted, name)])
        measured, out, low, high, own = found.T
        print(f"{title}: {len(found)} steps, in the interval {np.mean((low <= measured) & (measured <= high)):.0%}")
        print("  device left out", told(measured / out), " device in the fit", told(measured / own))
    for law, name, first, second in OTHERS:
        for of, by in ((first, second), (second, first)):
            group = known[law, of, name]
            said = TRAINED[law].parts(fitted[law, ""].constants(name, by), group.device, group.work).seconds
            large = group.roofline > RANGES[1]
            print(f"{law} of {of} by the law of {by}, above 20 us:", told((group.seconds / said)[large]))


def told(ratios: Any) -> str:
    """Percentiles of measured over predicted."""
    return " ".join(f"{share:.0%} {np.quantile(ratios, share):.2f}" for share in (0.05, 0.5, 0.95))


def steps(known: Any, fitted: Any, name: str) -> Iterator[tuple[float, ...]]:
    """Seconds of steps: measured, predicted with the device left out, the ends of that, predicted with it."""
    for model in map(load_model, MODELS):
        for weights in ("bf16", "fp8_channel"):
            for stage, sizes in STEPS.items():
                for batch, tokens in sizes:
                    options = {"decode_steps": 1, "runtime": "vllm", "precision": {"weights": weights}, "batch": batch}
                    found = step(known, fitted, name, model.kernels(stage, model.text(tokens, **options)))
                    if found is not None:
                        yield found


def step(known: Any, fitted: Any, name: str, kernels: Any) -> tuple[float, ...] | None:
    """One step; None where a kernel has no measured one near it."""
    total: dict[str, Any] = {}
    chip = next(g.device for g in known.values() if g.device.name == name)
    for kernel in kernels:
        kind, sizes = asked_of(kernel)
        if (law := kind.law) not in SHAPE:
            continue
        variant, work = work_of(kind, sizes, chip, True)
        group = known.get((law, variant, name))
        one = nearest(group, work) if group else None
        if one is None:
            return None
        seconds = [
            float(np.ravel(TRAINED[law].parts(fitted[law, of].constants(name, variant), chip, one.work).seconds)[0])
            for of in (name, "")
        ]
        low, high = spread_of(law_of(law), int(np.digitize(one.roofline[0], RANGES)), "devices")
        row = np.array([float(one.seconds[0]), seconds[0], seconds[0] * low, seconds[0] * high, seconds[1]])
        total[law] = total.get(law, 0) + float(np.ravel(kernel.runs)[0]) * row
    laws = np.array(list(total.values()))
    measured, out, _, _, own = laws.sum(axis=0)
    low, high = (float(np.hypot.reduce(laws[:, side] - laws[:, 1])) for side in (2, 3))
    return measured, out, out - low, out + high, own


def nearest(group: Measured, work: Any) -> Measured | None:
    """The measured kernel whose shape is nearest, in ratios of sizes."""
    names = SHAPE[group.law]
    sizes = np.stack(
        [np.broadcast_to(np.log(np.maximum(np.asarray(group.work[x], float), 1)), len(group)) for x in names]
    )
    wanted = np.log([max(float(np.ravel(work[x])[0]), 1) for x in names])
    apart = np.abs(sizes.T - wanted)
    distance = apart.max(axis=1) + 0.1 * apart.sum(axis=1)
    if "window" in group.work:
        distance = np.where(np.asarray(group.work["window"]) > 0, np.inf, distance)
    index = int(np.argmin(distance))
    return group.where(np.arange(len(group)) == index) if distance[index] < FAR else None


if __name__ == "__main__":
    main()
