"""Small models with random weights that PyTorch runs on the CPU, each beside our layer (see torch_engine.py)."""

import sys
from collections import Counter
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch_engine import RealOperators, Recorded
from transformers import AutoModelForCausalLM, DynamicCache, masking_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import modelmeter
from modelmeter.models.config_json import model_of
from modelmeter.models.families import deepencoder, deepseek
from modelmeter.runtimes.passes import on_chip
from modelmeter.sizes import added, evaluated
from modelmeter.tracing.api import Input
from modelmeter.validate.case import LayerAt
from modelmeter.validate.counters import tensors_in
from modelmeter.validate.decoders import MASKS, TextPart
from modelmeter.validate.deepseek_ocr import config, ocr
from modelmeter.validate.towers import CASES

HALF = torch.bfloat16
COMMON = {
    "vocab_size": 50, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "sliding_window": None,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 4}
"""All experts are active, so that each is read: the operands of a grouped product are the weights of all."""
NARROW = {"head_dim": 8, "use_bias": False}
SECTIONS = {"type": "default", "mrope_section": [1, 1, 2]}
DECODERS = {
    "llama": {}, "mistral": {"head_dim": 12}, "qwen2": {}, "qwen3": {"head_dim": 16, "num_key_value_heads": 6},
    "granite": {}, "smollm3": {}, "phi3": {"num_key_value_heads": 3, "partial_rotary_factor": 0.75},
    "gemma": {"head_dim": 8}, "starcoder2": {"use_bias": True}, "gpt_neox": {"rotary_pct": 0.5}, "ernie4_5": NARROW,
    "qwen2_vl_text": {"rope_scaling": SECTIONS}, "paddleocr_vl_text": {**NARROW, "rope_scaling": SECTIONS},
    "qwen3_moe": {"head_dim": 8, "norm_topk_prob": True, "moe_intermediate_size": 24, **EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 4},
}  # fmt: skip
SHALLOW = ["tower.layers=2", "tower.hidden=64", "tower.heads=4", "tower.mlp=256"]
TOWERS = {"qwen2_vl_7b": (6, 10), "paddleocr_vl": (5, 7), "minimind2_v": (14, 14)}
"""Rows and columns of patches."""
CALLS = ((1, 33, 0), (2, 37, 0), (1, 1, 21), (2, 1, 36))
"""Sequences, tokens of each, tokens before them in the cache."""


class Subject(NamedTuple):
    """A module, what makes its inputs, how it is called on them, and our layer at sizes under a runtime."""

    module: nn.Module
    make: Any
    run: Any
    ours: LayerAt


def decoder(kind, attention, b, s, past):
    """A whole decoder of a config.json on a cache, head and masks included."""
    fields = {**COMMON, "model_type": kind, **DECODERS[kind]}
    fields = {key: value for key, value in fields.items() if (kind, key) != ("gpt_neox", "num_key_value_heads")}
    made = CONFIG_MAPPING[kind](**{key: value for key, value in fields.items() if key != "model_type"})
    made._attn_implementation = attention
    several = "_text" in kind
    module = TextPart(made) if several else AutoModelForCausalLM.from_config(made, dtype=HALF)
    code = sys.modules[type(module.model if several else module).__module__]
    for mask in (mask for mask in MASKS if hasattr(code, mask)):  # which other checks leave out, in this process too
        setattr(code, mask, getattr(masking_utils, mask))
    if "experts" in " ".join(name for name, _ in module.named_modules()):
        module.set_experts_implementation("grouped_mm")
    heads = fields.get("num_key_value_heads", made.num_attention_heads)
    width = getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads

    def make():
        ids, positions = torch.zeros(b, s, dtype=torch.long), torch.arange(past, past + s)
        return ids, positions.expand(*((3,) * several), b, s).contiguous(), cache_of(made, b, heads, past, width)

    layer = model_of(fields, kind).stages[0].layer
    return Subject(module.eval(), make, partial(_call, module), _at(layer, attention, b=b, s=s, t=past + s))


def deepseek_ocr(attention, b, s, past):
    """The decoder of DeepSeek-OCR, a dense layer and two mixtures, on embeddings."""
    text = deepseek(
        hidden=48, heads=6, kv_heads=6, dense_mlp=72, dense_layers=1, moe_layers=2, experts=4, active=4, expert_mlp=24,
        shared_mlp=48, gate_up="merged", rotary="model", vocabulary=50, positions=512, tied=False,
    )  # fmt: skip
    made = config(vision(2), text, attention, "grouped_mm").text_config
    module = nn.ModuleList([ocr.UnlimitedOcrTextModel(made), nn.Linear(48, 50, bias=False)]).to(HALF).eval()

    def make():
        x, positions = torch.empty(b, s, 48, dtype=HALF).normal_(), torch.arange(past, past + s)
        return x, positions.expand(b, s).contiguous(), cache_of(made, b, 6, past, 8)

    def run(x, positions, cache):
        model, head = module
        found = model(inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True)
        return head(found.last_hidden_state)

    return Subject(module, make, run, _at(text, attention, b=b, s=s, t=past + s))


def tower(name, attention):
    """The vision tower of a model on one image, its projector included where that is one module with it."""
    case, *_ = CASES[name](modelmeter.load_model(name, SHALLOW), *TOWERS[name], attention)
    module, _ = case.build()

    def made(given):
        shape = given.shape(case.ours.at)
        return torch.zeros(shape, dtype=given.dtype) if given.dtype else torch.empty(shape, dtype=HALF).normal_()

    make = lambda: tree_map_only(Input, made, case.inputs)
    return Subject(module, make, partial(case.run, module), case.ours._replace(options={"runtime": attention}))


def vision(heads):
    """SAM and CLIP as DeepSeek-OCR has them, small."""
    sam = dict(
        hidden=8 * heads, heads=heads, mlp=40, patch=2, grid=8, window=3, window_blocks=2, global_blocks=1, neck=6
    )
    clip = dict(hidden=8 * heads, heads=heads, mlp=24, layers=2, patch=2, projections="split", positions=17)
    return deepencoder(sam=sam | dict(downsample=[4, 8 * heads]), clip=clip)


def sam(attention, b, u, v):
    """SAM's blocks, windowed and global, one after the other."""
    parts, grid = vision(3), {"b": b, "u": u, "v": v}
    made = config(parts, _any_decoder(), attention).vision_config.sam_config
    windowed, full = (repeat.layer for repeat in parts.sam.blocks)
    module = nn.Sequential(*(ocr.UnlimitedOcrSamVisionLayer(made, w) for w in (windowed.w, 0))).to(HALF).eval()
    layer = modelmeter.layers.base.Sequence((windowed, full))
    return Subject(
        module, lambda: (torch.empty(b, u, v, full.d, dtype=HALF).normal_(),), module, _at(layer, attention, **grid)
    )


def clip(attention, b, s):
    """CLIP's blocks as DeepSeek-OCR has them."""
    parts = vision(3)
    made = config(parts, _any_decoder(), attention).vision_config.encoder_config
    module, layer = ocr.UnlimitedOcrEncoder(made).to(HALF).eval(), parts.clip.transformer
    make = lambda: (torch.empty(b, s, layer.d, dtype=HALF).normal_(),)
    return Subject(module, make, module, _at(layer, attention, b=b, s=s))


@cache
def _any_decoder():
    return deepseek(
        hidden=16, heads=2, kv_heads=2, dense_mlp=9, dense_layers=1, moe_layers=1, experts=2, active=2, expert_mlp=8,
        shared_mlp=8, gate_up="merged", rotary="model", vocabulary=50, positions=512, tied=False,
    )  # fmt: skip


def _at(layer, attention, **sizes):
    return LayerAt(layer, sizes, {"runtime": attention})


def _call(module, ids, positions, cache):
    return module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)


def cache_of(made, b, heads, past, width):
    """A cache that holds so many positions."""
    cache = DynamicCache(config=made)
    for layer in range(made.num_hidden_layers) if past else ():
        cache.update(*(torch.empty(b, heads, past, width, dtype=HALF).normal_() for _ in "kv"), layer)
    return cache


SEQUENCES = {**{kind: partial(decoder, kind) for kind in DECODERS}, "deepseek_ocr": deepseek_ocr}
GRIDS = {
    **{f"{name}, {u} x {v} patches": partial(lambda name, attention: tower(name, attention), name) for name, (u, v) in TOWERS.items()},
    **{f"SAM, {b} x {u} x {v} patches": partial(lambda b, u, v, attention: sam(attention, b, u, v), b, u, v)
       for b, u, v in ((1, 5, 7), (2, 5, 7), (1, 6, 6))},
    **{f"CLIP, {b} x 37 tokens": partial(lambda b, attention: clip(attention, b, 37), b) for b in (1, 2)},
}  # fmt: skip
ATTENTION = ("eager", "sdpa")


def questions():
    """Name of a subject, attention, call, and what makes it."""
    for name, make in SEQUENCES.items():
        for attention in ATTENTION:
            yield from ((name, attention, call, partial(make, attention, *call)) for call in CALLS)
    for name, make in GRIDS.items():
        yield from ((name, attention, (), partial(make, attention=attention)) for attention in ATTENTION)


GATES = "the router's logits and the weights of the chosen experts keep their names"
REASONS = {
    "gemma": "its norms read 1 + W, a constant in fp32, and its embedding is scaled by a tensor",
    "mixtral": f"the router's logits are cast by a kernel of its own; {GATES}",
    "qwen3_moe": f"on a CPU the router's softmax casts its logits by a kernel of its own; {GATES}",
    "deepseek_ocr": f"a second mask, for windows that no layer has; {GATES}",
    "qwen3": "it projects values after it has normalised keys",
    "minimind2_v, 14 x 14 patches": "the class token is normalised, ours is dropped",
    "qwen2_vl_7b, 6 x 10 patches": "positions are copied, and the ends of images told",
    "paddleocr_vl, 5 x 7 patches": "taps of the positions' resampling, and their weights, are held",
}
"""Why a subject differs."""


class Asked(NamedTuple):
    """What was found: kernels by bytes read and written, ours and theirs; those of shapes alone; whether the profiler
    saw the same operators in the same order; bytes held at most, ours and theirs without and with room inside
    operators, and what is known to be theirs or ours alone of these.
    """

    ours: Counter
    theirs: Counter
    constants: int
    same_order: bool
    peak: int
    plain: int
    room: int
    known: int
    inside: Counter

    @property
    def same_kernels(self):
        return self.ours == self.theirs

    @property
    def same_peak(self):
        return self.plain == self.peak + self.known


def ask(subject):
    """Run a subject twice and count it."""
    given = subject.make()
    held = [
        (layer.keys, layer.values)
        for c in given
        if isinstance(c, DynamicCache)
        for layer in c.layers
        if c.get_seq_length()
    ]
    with torch.no_grad(), RealOperators((tensors_in(given), held)) as seen:
        subject.run(*given)
    found, ids = Recorded(subject.make, subject.run), any(k.name == "embedding" for k in seen.seen[:1])
    ids = 8 * subject.ours.given["b"] * subject.ours.given["s"] if ids else 0
    plain, inside = found.peak(inside=False), Counter()
    for number, many in enumerate(found.inside):
        inside.update({(found.operators[number], name): count for name, count in many.items()})
    return Asked(
        kernels_of(subject.ours, ids), Counter((k.bytes_read, k.bytes_written) for k in seen.kernels),
        sum(k.constant for k in seen.seen), [k.name for k in seen.seen] == found.operators, held_at_most(subject.ours),
        plain, found.peak() - plain, ids - _buffers(subject.ours), inside,
    )  # fmt: skip


def kernels_of(ours, ids):
    """Bytes read and written by our kernels on more than weights, with how often; `ids` are what a lookup reads more."""
    found = Counter()
    for kernel in ours.kernels():
        looked_up = ids and "embedding" in kernel.path and set(kernel.read_bytes) == {"weight"}
        if kernel.runs and (looked_up or set(kernel.read_bytes) - {"weight"}):
            read = sum(kernel.read_bytes.values()) + (ids if looked_up else 0)
            found[read, sum(kernel.written_bytes.values())] += int(kernel.runs)
    return found


def _buffers(ours):
    """Bytes of inputs of ours that are buffers of the module."""
    program = ours.layer.program(**ours.options)
    known = {r.name: r.stored * program.storage.bytes(r) for op in program.graph.ops for r in op.reads}
    return sum(evaluated([known[name] for name in program.graph.root.buffers if name in known], ours.sizes))


def held_at_most(ours):
    """Activations and cache at the moment when they are most: what the cache of later layers will add is not there."""
    program = ours.layer.program(**ours.options)
    graph, size = program.graph, lambda r: r.stored * program.storage.bytes(r)
    alive = list(program.counting.runtime.lifetimes(graph, on_chip(graph), size))
    new = [added(size(r) * (-1 if r.name.endswith(".old") else 1) for r in op.writes if r.role == "kv" or r.name.endswith(".old"))
           for op in graph.ops]  # fmt: skip
    later = [
        added(
            new[j] * (1 if after.node.loop == op.node.loop else after.times)
            for j, after in enumerate(graph.ops)
            if j > i
        )
        for i, op in enumerate(graph.ops)
    ]
    found = evaluated([*alive, *later], ours.sizes)
    whole = ours.cost().kv_cache_bytes
    return max(now + whole - then for now, then in zip(found[: len(alive)], found[len(alive) :], strict=True))
