"""One small instance of every BaseLayer, its sizes made by a function of (name, int)."""

import inspect
import pkgutil
from importlib import import_module

import modelmeter
from modelmeter import layers as mm
from modelmeter.layer import BaseLayer, Repeat, Sequence


def all_layers():
    """Every concrete BaseLayer that the package contains."""
    found = set()
    for module in pkgutil.walk_packages(modelmeter.__path__, "modelmeter."):
        if ".validate" not in module.name and not module.name.endswith("__main__"):
            for _, value in inspect.getmembers(import_module(module.name), inspect.isclass):
                if issubclass(value, BaseLayer) and not inspect.isabstract(value):
                    found.add(value)
    return sorted(found, key=lambda c: c.__name__)


def examples(v=lambda name, value: value):
    """{class: [(instance, workload sizes as ints)]}; v makes the hyper-parameters."""
    d, h, e = v("d", 6), v("h", 2), v("e", 3)
    grid, line = {"b": 2, "u": 5, "v": 4}, {"b": 2, "s": 5}
    norm, mlp = mm.LayerNorm(d), mm.MLPBlock(d, v("f", 7))
    attention = mm.Attention(d, h, e, v("side", 4))
    split = mm.Attention(d, h, e, v("side", 4), relative=False, fused_qkv=False)
    windowed, full = mm.Block(attention, mlp, norm, v("w", 3)), mm.Block(attention, mlp, norm, None)
    patch = mm.PatchEmbed(v("c", 3), d, v("p", 2))
    conv, halved = mm.Conv2d(d, v("o", 5), v("p3", 3)), mm.Conv2d(v("o", 5), v("o2", 6), v("p3", 3), v("stride", 2))
    norm2d = mm.LayerNorm2d(v("o", 5))
    sam = mm.ImageEncoderViT(patch, (Repeat(windowed, v("l", 2)), full), (conv,), norm2d, (halved,), v("U", 9))
    no_tp = mm.NoTPAttention(d, h, e)
    block = mm.NoTPTransformerBlock(no_tp, mm.NoTPFeedForward(d, v("f", 7)), norm)
    transformer = mm.NoTPTransformer(block, v("l", 2))
    embeddings = mm.CLIPVisionEmbeddings(patch, v("n", 30))
    rotary = mm.LlamaRotaryEmbedding(v("e2", 4))
    causal = [
        kind(d, v("g", 2), v("r", 3), v("e2", 4), rotary, fused_qkv=fused)
        for kind, fused in ((mm.LlamaAttention, False), (mm.LlamaFlashAttention2, True))
    ]
    gated, fused = mm.DeepseekV2MLP(d, v("f", 7)), mm.DeepseekV2MLP(d, v("f", 7), fused_gate_up=True)
    gate = mm.MoEGate(d, v("E", 5), v("k", 2))
    moe = mm.DeepseekV2MoE(gate, v("f", 7), gated)
    alone = mm.DeepseekV2MoE(gate, v("f", 7), None, fused_gate_up=True)
    rms = mm.DeepseekV2RMSNorm(d)
    text = {"b": 2, "s": 3, "t": 5}
    decoder = [mm.DeepseekV2DecoderLayer(causal[0], m, rms) for m in (gated, moe)]
    embedding, head = mm.TokenEmbedding(v("V", 11), d), mm.LMHead(v("V", 11), d)
    lm = mm.CausalLM(embedding, (decoder[0], Repeat(decoder[1], v("l", 2))), rms, head, rotary)
    tied = mm.CausalLM(embedding, (decoder[0],), rms, head, rotary, tied=True)
    depth = v("depth", 3)
    return {
        mm.Attention: [(attention, grid), (split, grid), (attention, grid | {"b": 1})],
        mm.MLPBlock: [(mlp, line)],
        mm.Block: [(windowed, grid), (full, grid)],
        mm.LayerNorm: [(norm, line)],
        mm.LayerNorm2d: [(norm2d, grid)],
        mm.PatchEmbed: [(patch, grid), (mm.PatchEmbed(v("c", 3), d, v("p", 2), bias=False), grid)],
        mm.Conv2d: [(conv, {"b": 2, "i": 5, "j": 4}), (halved, {"b": 2, "i": 5, "j": 4})],
        mm.ImageEncoderViT: [(sam, grid)],
        mm.CLIPVisionEmbeddings: [(embeddings, grid), (mm.CLIPVisionEmbeddings(patch, v("n", 30), True), grid)],
        mm.NoTPAttention: [(no_tp, line), (mm.NoTPAttention(d, h, e, fused_qkv=False), line)],
        mm.NoTPFeedForward: [(block.mlp, line)],
        mm.NoTPTransformerBlock: [(block, line)],
        mm.NoTPTransformer: [(transformer, line)],
        mm.VitModel: [(mm.VitModel(embeddings, norm, transformer), grid)],
        mm.MlpProjector: [(mm.MlpProjector(k, v("c", 3), d, depth), line) for k in ("identity", "linear", "mlp_gelu")],
        mm.LlamaRotaryEmbedding: [(rotary, line)],
        mm.LlamaAttention: [(causal[0], text), (causal[0], text | {"s": 1})],
        mm.LlamaFlashAttention2: [(causal[1], text)],
        mm.DeepseekV2MLP: [(gated, line), (fused, line)],
        mm.MoEGate: [(gate, line)],
        mm.DeepseekV2MoE: [(moe, line), (alone, line), (moe, {"b": 1, "s": 1})],
        mm.DeepseekV2RMSNorm: [(rms, line)],
        mm.DeepseekV2DecoderLayer: [(layer, text) for layer in decoder],
        mm.TokenEmbedding: [(embedding, line)],
        mm.LMHead: [(head, line)],
        mm.CausalLM: [(lm, text), (tied, text)],
        Repeat: [(Repeat(gated, v("l", 2)), line)],
        Sequence: [(Sequence((norm, mlp)), line)],
    }  # fmt: skip


def every_example(v=lambda name, value: value):
    return [(type(layer).__name__, layer, sizes) for pairs in examples(v).values() for layer, sizes in pairs]
