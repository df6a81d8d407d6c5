"""A calibrated machine beside models that no calibration has seen: predicted seconds over measured ones.

`python tests/calibrated.py mine.yaml [torch [FORMAT] | llama_cpp]` prints the table of docs/calibrate.md for this
machine, with as many threads as the device was calibrated with.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from modelmeter.catalogue import load_devices, load_host
from modelmeter.programs.precision import Precision
from modelmeter.times import Times

TRANSFORMERS = {
    "30M": (512, 1408, 8, 8, 4, 8000),
    "deep and narrow": (256, 1024, 16, 4, 4, 8000),
    "wide MLP, 2 KV heads": (768, 3072, 8, 12, 2, 16000),
    "110M": (1024, 2816, 6, 16, 16, 16000),
    "wide": (1536, 4096, 4, 12, 4, 8000),
}
"""hidden, intermediate, layers, heads, KV heads, vocabulary; none of them is in configs/calibrate.yaml."""
LARGE = {"as Qwen2 0.5B": (896, 4864, 24, 14, 2, 32000)}
LLAMA_CPP = {
    "100M": (1024, 2560, 8, 16, 2, 12000),
    "wide": (1792, 4608, 5, 14, 14, 8192),
    "deep": (512, 2304, 20, 8, 4, 8192),
}  # fmt: skip
PROMPTS = (48, 200)
STEPS = 10
TURNS = 3


class Pair(NamedTuple):
    """What was predicted, and what was measured."""

    model: str
    stage: str
    tokens: int
    predicted: float
    measured: float

    @property
    def error(self):
        return abs(self.predicted / self.measured - 1)


def host(device):
    return load_host().on(device)


def transformers(device, models, form="fp32"):
    """Prefill and decode of decoders; what one waited for other programs is not counted."""
    import torch

    from modelmeter.calibrate.host import decoder, step_seconds
    from modelmeter.calibrate.timing import timed, undisturbed

    for name, sizes in models.items():
        module, model = decoder(sizes, form)
        for tokens in PROMPTS:
            ids = torch.arange(tokens)[None]
            with torch.inference_mode():
                calls = [timed(lambda: module(ids, use_cache=True)) for _ in range(TURNS + 1)][1:]
            found = {
                "prefill": median(undisturbed(calls)),
                "decode": median(step_seconds(module, tokens, STEPS)),
            }
            work = model.text(tokens, decode_steps=STEPS, runtime="sdpa", precision=Precision.of(form))
            stages = Times(model, work, device, host(device)).stages
            for stage, seconds in found.items():
                yield Pair(name, stage, tokens, stages[stage].span.seconds, seconds)


def tower(device):
    """Three layers of the vision tower of MiniMind-V (CLIP-B/16), on an image of 224 x 224."""
    import torch
    from torch.utils._pytree import tree_map_only
    from torch_subjects import CASES

    import modelmeter
    from modelmeter.calibrate.timing import timed, undisturbed
    from modelmeter.seconds import seconds_of
    from modelmeter.tracing.api import Input

    case, *_ = CASES["minimind2_v"](modelmeter.load_model("minimind2_v", ["tower.layers=3"]), 14, 14, "sdpa")
    module = case.build()[0].float()
    dtype = lambda given: given.dtype if given.dtype and not given.dtype.is_floating_point else torch.float32
    given = tree_map_only(Input, lambda x: torch.zeros(x.shape(case.ours.at), dtype=dtype(x)), case.inputs)
    with torch.inference_mode():
        calls = [timed(partial(case.run, module, *given)) for _ in range(TURNS + 1)][1:]
    ours = case.ours._replace(options={"runtime": "sdpa", "precision": Precision.of("fp32")})
    kernels = ours.kernels()
    busy = sum(float(k.runs) * float(e.seconds) for k, e in zip(kernels, seconds_of(kernels, device), strict=True))
    launches = sum(float(k.runs) for k in kernels) * host(device).eager.seconds
    yield Pair("CLIP-B/16, 3 layers", "vision", 196, busy + launches, median(undisturbed(calls)))


def llama_cpp(device, models, policies=("q4_k_m", "q8_0", "f16"), threads=1):
    """Prefill and decode of decoders that llama.cpp runs."""
    from modelmeter.calibrate import llama_files
    from modelmeter.calibrate.llama_cpp import ANSWER, calls_of, seconds_of

    for policy in policies:
        for name, sizes in models.items():
            model = llama_files.decoder(sizes)
            with tempfile.TemporaryDirectory() as folder:
                path = llama_files.write(Path(folder) / "model.gguf", sizes, policy)
                measured = list(seconds_of(calls_of(path, sizes[-1], PROMPTS, TURNS, threads)))
            for tokens, *found in measured:
                work = model.text(int(tokens), decode_steps=ANSWER, runtime="llama_cpp", precision=Precision.of(policy))
                stages = Times(model, work, device, host(device)).stages
                for stage, seconds in zip(("prefill", "decode"), found, strict=True):
                    yield Pair(f"{name}, {policy}", stage, tokens, stages[stage].span.seconds, seconds)


def main(path, engine="torch", form="fp32"):
    [device] = load_devices([path])
    threads = int(device.multiprocessors)
    if engine == "torch":
        import torch

        torch.set_num_threads(threads)
        pairs = [*transformers(device, TRANSFORMERS | LARGE, form), *(tower(device) if form == "fp32" else ())]
    else:
        pairs = list(llama_cpp(device, LLAMA_CPP, threads=threads))
    for pair in pairs:
        print(f"| {pair.model} | {pair.stage} | {pair.tokens} | {pair.predicted * 1e3:.1f} | {pair.measured * 1e3:.1f} | {pair.predicted / pair.measured - 1:+.1%} |", flush=True)  # fmt: skip
    for stage in dict.fromkeys(pair.stage for pair in pairs):
        errors = [pair.error for pair in pairs if pair.stage == stage]
        print(f"{stage}: median {median(errors):.1%}, worst {max(errors):.1%} of {len(errors)}")
    print(f"median {median(pair.error for pair in pairs):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
