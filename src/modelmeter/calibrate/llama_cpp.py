"""llama.cpp through its prebuilt package: small decoders that it runs whole, and the laws that explain their seconds.

The engine times prompts and answers, not kernels. So each row is the sum of a stage's kernels, and one fit finds the
constants of all laws: by format of the weights what a byte and a FLOP of products take, and what all formats share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from modelmeter.calibrate.fits import NINE_OF_TEN, digits
from modelmeter.calibrate.llama_files import decoder, write
from modelmeter.calibrate.timing import Call, undisturbed
from modelmeter.errors import InputError
from modelmeter.programs.kernels import Kernel
from modelmeter.programs.precision import Precision
from modelmeter.seconds.fit import fitted
from modelmeter.seconds.laws import Constant
from modelmeter.seconds.processor import SUMS, amounts_of

RUNTIME = "llama_cpp"
ANSWER = 24
SHARED = {"columns", "launch"}
"""Constants that no format has for itself."""
FREE = {
    "vector": ("weights", "columns"), "matrix": ("products", "weights"), "attention": ("products",),
    "step": ("cached",), "stream": ("near", "operations"),
}  # fmt: skip
"""Constants that stages tell apart; the others are as good as none, as a kernel's launch is the host's."""
NONE = 1e-15
WITHIN = 10
"""How far a constant may be from where its fit starts: few stages tell little of some of them."""
LEAST, MOST = 2, 5
"""Decoders of each policy that are asked, however little time there is; and how often at most."""
ASK = """
import json, os, sys, time
import xllamacpp as engine
asked = json.loads(sys.argv[1])
p = engine.CommonParams()
p.model.path, p.warmup, p.fit_params, p.n_parallel, p.verbosity = asked["path"], True, False, 1, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = asked["threads"]
p.n_ctx = p.n_batch = 1024
p.n_ubatch = 512
p.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
server, found = engine.Server(p), []
for turn in range(asked["turns"]):
    for tokens in asked["prompts"]:
        prompt = [(7 * i + 13 * turn) % (asked["vocabulary"] - 300) + 260 for i in range(tokens)]
        start, busy = time.perf_counter(), time.process_time()
        told = server.handle_completions({"prompt": prompt, "n_predict": asked["answer"], "temperature": 0,
                                          "ignore_eos": True, "cache_prompt": False})["timings"]
        assert told["prompt_n"] == tokens and told["predicted_n"] == asked["answer"], told
        share = (time.process_time() - busy) / (time.perf_counter() - start)
        found.append([tokens, told["prompt_ms"] / 1e3, told["predicted_per_token_ms"] / 1e3, share])
print("\\nFOUND", json.dumps(found), flush=True)
os._exit(0)  # the server's threads need not end
"""


@dataclass(frozen=True)
class Row:
    """A stage of a decoder as the engine runs it: amounts by constant, how many kernels, seconds."""

    stage: str
    amounts: Mapping[str, float]
    kernels: float
    seconds: float


def calls_of(path: Path, vocabulary: int, prompts: Sequence[int], turns: int, threads: int = 1) -> list[list[float]]:
    """(prompt tokens, seconds of the prompt, seconds a token of the answer, share of a core) of every turn, as the
    engine tells it. Raises InputError where it does not run."""
    asked = {"path": str(path), "vocabulary": vocabulary, "prompts": list(prompts), "turns": turns, "threads": threads,
             "answer": ANSWER}  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)], capture_output=True, text=True, errors="replace"
    )
    told = run.stdout.partition("\nFOUND ")[2]
    if run.returncode or not told:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        raise InputError(f"llama.cpp did not run {path.name}: {lines[-1] if lines else 'it said nothing'}")
    found: list[list[float]] = json.loads(told.splitlines()[0])
    return found


def seconds_of(calls: Sequence[Sequence[float]]) -> Iterator[list[float]]:
    """(prompt tokens, seconds of the prompt, seconds a token of the answer), the median of those turns that had the
    core for themselves (of all, if none had)."""
    for n in dict.fromkeys(row[0] for row in calls):
        every = [row for row in calls if row[0] == n]
        yield [n, *(median(undisturbed([Call(row[i], row[3]) for row in every])) for i in (1, 2))]


def rows_of(sizes: Sequence[int], policy: str, calls: Sequence[Sequence[float]]) -> Iterator[Row]:
    """The stages of a decoder under a policy, each with what the engine takes for it."""
    model = decoder(sizes)
    for tokens, prompt, token in seconds_of(calls):
        work = model.text(int(tokens), decode_steps=ANSWER, runtime=RUNTIME, precision=Precision.of(policy))
        for stage, seconds in (("prefill", prompt), ("decode", token)):
            kernels = model.kernels(stage, work)
            yield Row(stage, _amounts(kernels), sum(float(k.runs) for k in kernels), seconds)


def _amounts(kernels: Sequence[Kernel]) -> dict[str, float]:
    """How much of each constant a stage has, as law/variant/term."""
    found: dict[str, float] = {}
    for kernel in kernels:
        for law, variant, share, amounts in amounts_of(kernel, {}):
            for term, amount in amounts.items():
                if term in FREE.get(law.name, ()):
                    key = f"{law.name}/{'' if term in SHARED else variant}/{term}"
                    found[key] = found.get(key, 0.0) + float(kernel.runs) * share * float(amount)
    return found


def fitted_rows(rows: Sequence[Row], threads: int = 1) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The laws that explain the stages best, and what the host takes: a kernel and a step."""
    keys = sorted({key for row in rows for key in row.amounts})
    table = np.array([[row.amounts.get(key, 0.0) for key in keys] + [row.kernels, 1.0] for row in rows])
    seconds = np.array([row.seconds for row in rows])
    terms = {key: _term(key) for key in keys}
    start = {**terms, "launch": 1e-6, "step": 1e-4}
    constants = [Constant(name, value, value / WITHIN / threads, value * WITHIN, "") for name, value in start.items()]

    def predicted(c: Mapping[str, float]) -> Any:
        return table @ np.array([c[name] for name in start])

    found = fitted(lambda c: np.log(predicted(c) / seconds), constants, start, rounds=200)
    factors = seconds / predicted(found)
    low, high = np.quantile(factors, NINE_OF_TEN).tolist()
    told = {"error": round(float(np.median(abs(1 / factors - 1))), 3), "low": round(min(low, 1.0), 3),
            "high": round(max(high, 1.0), 3)}  # fmt: skip
    host = {name: [digits(found[name] * f) for f in (0.5, 1.0, 2.0)] for name in ("launch", "step")}
    return _laws(found, keys, told), {"compiled": host["launch"], "graph": host["launch"], "native": host["step"]}


def _term(key: str) -> float:
    law, _, name = key.split("/")
    return next(term.start for term in SUMS[law].terms if term.name == name) if name != "near" else 1e-10


def _laws(found: Mapping[str, float], keys: Sequence[str], told: Mapping[str, float]) -> dict[str, Any]:
    """Constants by law and variant; those that all variants share stand in each."""
    laws: dict[str, Any] = {}
    for law, variant, _ in (key.split("/") for key in keys if key.split("/")[1]):
        named = laws.setdefault(law, {}).setdefault(variant, {term.name: NONE for term in SUMS[law].terms} | dict(told))
        for term in FREE[law]:
            key = f"{law}/{'' if term in SHARED else variant}/{term}"
            named[term] = digits(found[key]) if key in found else NONE
    return laws


def measured(
    asked: Mapping[str, Any], seconds: float, threads: int, told: Callable[[str], None]
) -> tuple[dict[str, Any], Any]:
    """The laws of llama.cpp on this machine, and its host: decoders of each policy in turn, and again, in so many
    seconds in which the threads have a core."""
    columns = ([(policy, sizes) for sizes in models] for policy, models in asked["decoders"].items())
    every = [one for row in zip_longest(*columns) for one in row if one is not None]
    calls: list[list[list[float]]] = [[] for _ in every]
    costs: dict[int, float] = {}
    least, end = LEAST * len(asked["decoders"]), _clock(threads) + seconds
    for index, (policy, sizes) in islice(cycle(enumerate(every)), MOST * len(every)):
        begun = _clock(threads)
        dear = costs.get(index, max(costs.values(), default=0.0))
        if begun + dear > end and (calls[index] or index >= least):
            break
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder) / f"{policy}.gguf", sizes, policy)
            calls[index] += calls_of(path, sizes[-1], asked["prompts"], 1, threads)
        costs[index] = _clock(threads) - begun
        told(f"{policy}: {'x'.join(map(str, sizes))}; {max(end - _clock(threads), 0):.0f} s left")
    rows = [row for one, own in zip(every, calls, strict=True) if own for row in rows_of(one[1], one[0], own)]
    return fitted_rows(rows, threads)


def _clock(threads: int) -> float:
    """Seconds in which this process, or the threads of those that it started, had a core."""
    spent = os.times()
    return spent.user + spent.system + (spent.children_user + spent.children_system) / threads
