"""Modules that inductor is asked about, beside the kernels that the runtime `compile` has for them.

A decoder is transformers' module of a small config.json with random weights; masks are left out, as constants of the
shape. A kernel is compared by what it is, the elements of each tensor that it stores, whether it sums, and, of a loop,
the bytes that it reads and writes.
"""

from itertools import groupby
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from inductor_engine import Report, ask
from torch import nn

from modelmeter.graph.graph import Graph
from modelmeter.graph.ops import SILENT
from modelmeter.layers import MlpProjector
from modelmeter.layers.base import BaseLayer
from modelmeter.models.config_json import model_of
from modelmeter.models.families import deepencoder, deepseek
from modelmeter.programs.kernels import groups
from modelmeter.programs.precision import Precision
from modelmeter.programs.storage import Storage
from modelmeter.runtimes.fusion import sums
from modelmeter.runtimes.lifetimes import launched
from modelmeter.runtimes.passes import on_chip
from modelmeter.runtimes.runtime import Runtime
from modelmeter.sizes import evaluated
from modelmeter.validate.case import Case
from modelmeter.validate.decoders import cache_of, forward, module_of
from modelmeter.validate.deepseek_ocr import At, layer_cases

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {}, "olmo2": {}, "granite": {}, "cohere": {}, "glm4": {"attention_bias": True},
    "qwen2": {"use_sliding_window": False}, "starcoder2": {"use_bias": True, "sliding_window": None, "head_dim": None},
    "gpt_neox": {"rotary_pct": 0.25, "num_key_value_heads": None, "head_dim": None},
    "gemma": {}, "phi3": {"sliding_window": None, "head_dim": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}  # fmt: skip


class Question(NamedTuple):
    """A call of a decoder: `tokens` more of `batch` sequences that have `past`, their logits `all` or the `last`."""

    kind: str
    past: int
    tokens: int
    batch: int = 1
    dtype: str = "bf16"
    logits: str = "all"
    layers: int = 2

    def __str__(self) -> str:
        words = f"{self.tokens} of {self.past + self.tokens} tokens, batch {self.batch}, {self.layers} layers"
        return f"{words}, {self.dtype}" + ", last logits" * (self.logits == "last")


class Part(NamedTuple):
    """A layer of a small DeepSeek-OCR by its class, on so many images or sequences, patches of a side, or tokens."""

    name: str
    batch: int = 1
    side: int = 8
    tokens: int = 17
    dtype: str = "bf16"

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.side} x {self.side} patches or {self.tokens} tokens, {self.dtype}"


class Found(NamedTuple):
    """A kernel as it is compared."""

    kind: str
    stored: tuple[int, ...] = ()
    sums: bool = False
    read_bytes: int = 0
    written_bytes: int = 0


def fields_of(kind: str, layers: int = 2) -> dict[str, Any]:
    """A small config.json of a model_type."""
    fields = {**SMALL, "model_type": kind, **CONFIGS[kind], "num_hidden_layers": layers}
    kept = {"sliding_window"}
    return {key: value for key, value in fields.items() if value is not None or key in kept}


class _Call(nn.Module):
    def __init__(self, module: nn.Module, keep: int) -> None:
        super().__init__()
        self.module, self.keep = module, keep

    def forward(self, ids: Any, positions: Any, cache: Any) -> Any:
        return self.module(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=self.keep
        )


def asked(question: Question) -> Report:
    """What inductor makes of transformers' module."""
    module = module_of(fields_of(question.kind, question.layers))
    module = module.float() if question.dtype == "fp32" else module
    cache, past, end = cache_of(module), question.past, question.past + question.tokens
    with torch.no_grad():
        if past:
            forward(module, question.batch, past, cache)
    ids = torch.zeros(question.batch, question.tokens, dtype=torch.long)
    positions = torch.arange(past, end)[None].expand(question.batch, -1).contiguous()
    return ask(_Call(module, int(question.logits == "last")), ids, positions, cache)


def lowered(question: Question) -> tuple[Graph, dict[str, int]]:
    """Our kernels of it, and its sizes."""
    layer = model_of(fields_of(question.kind, question.layers)).stages[0].layer
    sizes = {"b": question.batch, "s": question.tokens, "t": question.past + question.tokens}
    return Runtime.of("compile").lowered(layer.graph(), logits=question.logits), sizes


class _Run(nn.Module):
    def __init__(self, module: nn.Module, run: Any) -> None:
        super().__init__()
        self.module, self.run = module, run

    def forward(self, *given: Any) -> Any:
        return self.run(self.module, *given)


def case_of(part: Part) -> Case:
    """The case that `modelmeter validate` has of a layer."""
    heads, kv = 2, 2
    sam = dict(hidden=8, heads=heads, mlp=10, patch=2, grid=8, window=3, window_blocks=2, global_blocks=1, neck=3)
    clip = dict(hidden=10, heads=heads, mlp=7, layers=2, patch=2, projections="split", positions=17)
    decoder = deepseek(
        hidden=16, heads=kv, kv_heads=kv, dense_mlp=9, dense_layers=1, moe_layers=2, experts=4, active=2, expert_mlp=8,
        shared_mlp=16, gate_up="merged", rotary="model", vocabulary=50, positions=8192, tied=False,
    )  # fmt: skip
    tower = deepencoder(sam=sam | {"downsample": [4, 10]}, clip=clip)
    model = SimpleNamespace(tower=tower, decoder=decoder, projector=MlpProjector("linear", 10, 16))
    at = At(b=part.batch, u=part.side, v=part.side, s=part.tokens)
    return next(case for case in layer_cases(model, at) if case.layer == part.name)


def answered(question: Question | Part) -> tuple[Report, "Ours"]:
    """What inductor makes, and our kernels."""
    if isinstance(question, Question):
        return asked(question), Ours(*lowered(question), question.dtype)
    case = case_of(question)
    module, inputs = case.build(getattr(torch, {"bf16": "bfloat16", "fp32": "float32"}[question.dtype]))
    return ask(_Run(module, case.run), *inputs), layer_at(case.ours.layer, case.ours.sizes, question.dtype)


class Ours:
    """Our kernels at sizes, in a format."""

    def __init__(self, graph: Graph, sizes: dict[str, int], dtype: str) -> None:
        self.sizes, self.storage = sizes, Storage(graph, Precision.of(dtype))
        runs = (op._replace(again=self.at(op.again)) for op in graph.ops)
        self.graph = graph.with_ops(op for op in runs if op.again and op.kind != "unused")

    def at(self, size: Any) -> int:
        return int(evaluated([size], self.sizes)[0])

    def kernels(self) -> list[Found]:
        """The kernels, as they are compared."""
        labels = self.graph.labels
        users = self.graph.users(labels)
        found = []
        for group in groups(self.graph, self.storage):
            ops = [(i, op) for i, op, _ in group.ops if op.kind not in SILENT]
            if not ops:
                continue
            _, first = ops[0]
            if not first.kernel.startswith("loop "):
                found.append(Found("attention" if ":attention:" in first.kernel else first.kind))
                continue
            read, written = (sum(self.at(m.bytes) for m in group.moves if m.writes is side) for side in (False, True))
            stored = []
            for i, op in ops:
                out = [w for w in op.writes if w.role == "kv" or users.get((w.name, i)) != {first.kernel}]
                sizes = [self.at(w.touched) for w in out]
                stored += [sum(sizes)] if op.kind == "copy" and len(sizes) > 1 else sizes  # side by side in one buffer
            ids = sum(8 * self.at(op.n.elements(("b", "s"))) for _, op in ops if op.kind == "lookup")
            summing = any(sums(op) for _, op in ops)
            found.append(Found("loop", tuple(sorted(stored, reverse=True)), summing, read + ids, written))
        return found

    def peak(self) -> int:
        """The most bytes alive in what is made, caches among them, which are results and stay."""
        ops = []
        for number, op in enumerate(self.graph.ops):
            writes = (
                w._replace(role="activation", stored=w.touched, name=f"{w.name}.{number}") if w.role == "kv" else w
                for w in op.writes
            )
            ops.append(op._replace(reads=tuple(r for r in op.reads if r.role != "kv"), writes=tuple(writes)))
        graph = self.graph.with_ops(ops)
        given = {r.name: self.size(r) for found in graph.reads for r, at in found if at < 0 and r.role == "activation"}
        return max(launched(graph, on_chip(graph), self.size), default=0) - sum(given.values())

    def size(self, r: Any) -> int:
        return self.at(r.stored) * self.at(self.storage.bytes(r))


def theirs(report: Report) -> list[Found]:
    """Inductor's kernels as they are compared; statistics of a single row, a loop of their own, with what uses them."""
    found: list[Found] = []
    before = None
    for kernel in report.kernels:
        if kernel.library:
            before = None
            found.append(Found(_kind(kernel.library)))
            continue
        if before and before.sums and before.stored[-1:] == (1,) and set(before.made) & set(kernel.read):
            read = before.read | {name: size for name, size in kernel.read.items() if name not in before.made}
            stored = tuple(sorted((*before.stored[:-1], *kernel.stored), reverse=True))
            written = before.written_bytes - 4 * before.stored.count(1) + kernel.written_bytes
            kernel = kernel._replace(stored=stored, sums=True, read=read, written_bytes=written)
            found.pop()
        before = kernel
        found.append(Found("loop", kernel.stored, kernel.sums, sum(kernel.read.values()), kernel.written_bytes))
    return found


def _kind(library: str) -> str:
    if "scaled_dot_product" in library:
        return "attention"
    if "conv" in library:
        return "conv2d"
    return "matmul" if library.endswith("mm") else library


def functions(kernels: list[Found]) -> int:
    """The calls: loops between two calls of libraries are one function of the generated code."""
    runs = groupby(kernel.kind == "loop" for kernel in kernels)
    return sum(1 if loops else len(list(same)) for loops, same in runs)


def layer_at(layer: BaseLayer, sizes: dict[str, int], dtype: str) -> Ours:
    """Our kernels of a layer."""
    return Ours(Runtime.of("compile").lowered(layer.graph()), sizes, dtype)


QUESTIONS: list[Question | Part] = [
    Question("llama", 0, 7), Question("llama", 0, 64, dtype="fp32", layers=3), Question("llama", 9, 1),
    Question("llama", 5, 4, batch=2), Question("llama", 0, 33, batch=2, logits="last", layers=5),
    Question("qwen2", 0, 7, logits="last"), Question("qwen3", 0, 7), Question("qwen3", 20, 1, batch=2),
    Question("olmo2", 5, 3), Question("granite", 9, 1), Question("starcoder2", 0, 7, batch=2),
    Question("starcoder2", 12, 1, dtype="fp32"), Question("glm4", 0, 7), Question("glm4", 4, 3, batch=2),
    Question("cohere", 0, 5), Question("gpt_neox", 0, 7),
    Part("NoTPTransformer", batch=2), Part("NoTPTransformerBlock", dtype="fp32"), Part("MLPBlock"),
    Part("MlpProjector (mlp_gelu)"), Part("DeepseekV2MLP"), Part("DeepseekV2DecoderLayer (dense)"),
    Part("LayerNorm2d"), Part("TokenEmbedding"),
]  # fmt: skip
HELD_OUT: list[Question | Part] = [
    Question("gemma", 0, 7), Question("gemma", 9, 1, batch=2), Question("phi3", 0, 7), Question("phi3", 9, 1),
    Part("Block (window)"), Part("Block (global)", batch=2), Part("DeepseekV2MoE"), Part("ImageEncoderViT"),
]  # fmt: skip
"""Looked at when the rules stood."""
KEPT = "a buffer is kept for the next one of its size, mostly that of a norm's statistics"
REASONS = {
    "llama": "a residual that is stored behind later layers stands apart from its norm, whose loops were joined first",
    "qwen3": "one position: the statistics of heads are one loop with the halves that read them",
    "starcoder2": "of a single row mean and variance are loops of their own; one of them is stored",
    "cohere": "transformers turns queries and keys in 32 bits, our layer in 16",
    "gpt_neox": "two norms of one input and the parts of one product: inductor leaves their loops apart",
    "DeepseekV2DecoderLayer (dense)": "queries and keys are turned behind the values",
    "LayerNorm2d": "a sum over fewer than 8 channels is written out, and stores nothing",
    "gemma": "the scale of embeddings is a tensor of one number: a read more, so that residuals are stored earlier",
    "phi3": "values are a part of one product: the first cache is a copy of them",
    "Block (window)": "in front of padded windows a norm's mean and deviation are stored, and what is made of them apart",
    "ImageEncoderViT": "norms in front of padded windows; images to channels last; sums over fewer than 8 channels are written out",
    "DeepseekV2MoE": "a softmax of fewer than 8 experts is two loops; indices of experts are read by fewer loops, and put back by one",
}
"""Why a module's kernels differ, found by looking at both."""
