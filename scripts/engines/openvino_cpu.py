"""OpenVINO is asked about models that optimum-intel exports here (tests/openvino_engine.py).

Beside it stands what `runtimes/openvino.py`, the policies of weights and `checkpoints/openvino.py` say. Needs the
environment of constraints-openvino.txt; takes about ten minutes.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino_engine as engine
from openvino_models import DECODERS, REASONS, TOWERS, cached, launched, made, weights
from page import both, write

from modelmeter.checkpoints.openvino import held

HEADS = ("model", "what", "figure", "differs")
RUNTIMES = ("openvino_stateful", "openvino_stateless")
EVERY, SOME = ("llama", "llama, tied", "mixtral", "llama, odd columns"), ("openvino_int8", "openvino_int4")
"""Decoders that are compressed in every way; the ways in which the others are."""
ONE_ROW = "scale and zero point of a matrix of one row, 3 bytes a layer, are counted as scalars of the graph too"
WIDE, PROMPTS = "llama, wide", (1, 512, 1024, 2048)


def ask() -> str:
    """Ask, and write docs/engine-openvino.md below its mark."""
    with TemporaryDirectory() as folder:
        rows = [*_towers(Path(folder)), *(row for name in DECODERS for row in _decoder(Path(folder), name))]
        rows += _memory(Path(folder))
    equal = sum(row[-1] == "" for row in rows)
    packages = ", ".join(f"{name} {version(name)}" for name in ("openvino", "optimum-intel", "nncf", "transformers"))
    summary = (
        f"{packages}: {len(rows)} checks, {equal} equal. Where they differ the engine's figure comes first, ours "
        "second; of memory both are given."
    )
    write("engine-openvino.md", summary, HEADS, rows, numbers=1)
    return f"{len(rows)} checks, {equal} equal"


def _row(name: str, what: str, theirs: object, ours: object, reason: str = "unexplained") -> list[str]:
    figures = [f"{int(value):,}" if isinstance(value, int) else str(value) for value in (theirs, ours)]
    return [name, what, both(*figures), "" if theirs == ours else reason]


def _primitives(name: str, runtime: str, theirs: tuple[engine.Counter, int], ours: engine.Counter) -> list[str]:
    found, integers = theirs
    row = _row(name, f"{runtime}: primitives, by type ({integers} more on integers)", found.total(), ours.total())
    return [*row[:3], "" if found == ours else REASONS.get(name, "unexplained")]


def _towers(folder: Path) -> Iterator[list[str]]:
    for name, (layer, sizes) in TOWERS.items():
        path = engine.tower(folder, name)
        yield _file(name, "fp32", path, layer.forward_memory_weight_bytes(**sizes, precision="fp32"))
        yield _primitives(
            name, RUNTIMES[0], engine.primitives(engine.CORE.read_model(path)), launched(layer, RUNTIMES[0])
        )


def _file(name: str, policy: str, path: Path, ours: int) -> list[str]:
    found = engine.read(path)
    rest = found.frequencies + found.rest
    reason = ONE_ROW if name == "qwen2_moe" else "unexplained"
    return _row(name, f"{policy}: bytes of `.bin`, {rest} of them of the graph", found.all, ours + rest, reason)


def _decoder(folder: Path, name: str) -> Iterator[list[str]]:
    path = engine.export(folder, name)
    yield _file(name, "fp32", path, weights(name, "fp32"))
    for policy in engine.policies() if name in EVERY else SOME:
        yield _file(name, policy, engine.compressed(path, policy), weights(name, policy))
    inside = engine.stateful(path, name)
    for runtime, model in zip(RUNTIMES, (inside, engine.CORE.read_model(path)), strict=True):
        yield _primitives(name, runtime, engine.primitives(model), launched(made(name), runtime))
    carried, came, went = engine.ports(path)
    step = "bytes of the cache in a step of one token after eight"
    yield _row(
        name, f"openvino_stateless: {step}, {came} ports in, {went} out", carried, cached(name, RUNTIMES[1], "fp32")
    )
    kept, positions = engine.state(inside)
    yield _row(name, f"openvino_stateful: {step}", int(kept), cached(name, RUNTIMES[0], "fp16"))
    yield _row(name, "positions that have logits, of a prompt of eight", positions, 8)


def _memory(folder: Path) -> Iterator[list[str]]:
    paths = []
    for name in ("llama", WIDE):
        paths.append(folder / f"{name[:6].strip(',')}{len(name)}.xml")
        file = folder / name.replace(" ", "_").replace(",", "") / "openvino_model.xml"
        engine.openvino.save_model(engine.stateful(file, name), paths[-1], compress_to_fp16=False)
    for tokens in PROMPTS:
        theirs, ours = engine.memory(*paths, tokens), sum(held(made(WIDE), tokens))
        said = f"{theirs / ours - 1:+.1%} of ours: the graph itself, pages of the allocator"
        what = f"openvino_stateful: bytes that the process holds, a prompt of {tokens:,}"
        yield [WIDE, what, f"{theirs:,} / {ours:,}", said]
