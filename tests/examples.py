"""One small instance of every BaseLayer, its sizes made by a function of (name, int); and layers of any equations."""

import inspect
import pkgutil
import re
from dataclasses import make_dataclass, replace
from importlib import import_module

import modelmeter
from modelmeter import BaseLayer
from modelmeter import layers as mm
from modelmeter.layers.merge import ConvProjector, MergeProjector
from modelmeter.layers.mlp import _Activated
from modelmeter.layers.navit import (
    ImageAttention,
    NavitBlock,
    NavitTower,
    Projected,
    VisionAttention,
)
from modelmeter.layers.queries import PrefixAttention, QueryTower
from modelmeter.layers.rotary import AxialRotary, AxialRotation
from modelmeter.layers.sam_towers import SamTower, TwinTower
from modelmeter.layers.scaled import ClassTower, ScaledBlock
from modelmeter.layers.swin import GridMerge, SwinBlock, SwinTower, WindowAttention
from modelmeter.models.decoders import Apart
from modelmeter.models.vlm import Join, RowsJoin, SeparatedJoin, VisionStage
from modelmeter.sizes import Size

RUNTIMES = ("eager", "flash", "fused", "compulsory")
ENGINES = ("llama_cpp", "llama_cpp_scores", "sdpa", "vllm")
"""Runtimes that have laws of their own beside those of every runtime."""


def all_layers():
    """Every concrete BaseLayer that the package contains."""
    found = set()
    for module in pkgutil.walk_packages(modelmeter.__path__, "modelmeter."):
        if not re.search(r"\.(validate|tracing|models\.traced)|__main__$", module.name):  # a trace has no fields
            for _, value in inspect.getmembers(import_module(module.name), inspect.isclass):
                if issubclass(value, mm.BaseLayer) and not inspect.isabstract(value):
                    found.add(value)
    return sorted(found, key=lambda c: c.__name__)


def examples(v=lambda name, value: value):
    """{class: [(instance, workload sizes as ints)]}; v makes the hyper-parameters."""
    return {**_parts(v), **_vision(v), **_text(v), **_native(v)}


GRID, LINE, TEXT = {"b": 2, "u": 5, "v": 4}, {"b": 2, "s": 5}, {"b": 2, "s": 3, "t": 5}
IMAGES = {"images": 2, "u": 5, "v": 4}
KINDS = IMAGES | {"images_2": 1, "u_2": 3, "v_2": 4}


def _parts(v):
    d, f = v("d", 6), v("f", 7)
    norm, mlp = mm.LayerNorm(d), mm.MLPBlock(d, f)
    gated = mm.DeepseekV2MLP(d, f)
    strided = mm.Conv2d(v("o", 5), v("o2", 6), v("p3", 3), v("stride", 2))
    depth = v("depth", 3)
    return {
        mm.MLP: [(mm.MLP(d, f), LINE)],
        mm.MLPBlock: [(mlp, LINE)],
        mm.NoTPFeedForward: [(mm.NoTPFeedForward(d, f), LINE)],
        mm.GatedMLP: [(mm.GatedMLP(d, f), LINE)],
        mm.DeepseekV2MLP: [(gated, LINE)],
        mm.LayerNorm: [(norm, LINE)],
        mm.LayerNorm2d: [(mm.LayerNorm2d(v("o", 5)), GRID)],
        mm.RMSNorm: [(mm.RMSNorm(d), LINE)],
        mm.WideRMSNorm: [(mm.WideRMSNorm(d), LINE)],
        mm.CenteredNorm: [(mm.CenteredNorm(d), LINE), (mm.CenteredNorm(d, v("heads", 2)), LINE)],
        mm.DeepseekV2RMSNorm: [(mm.DeepseekV2RMSNorm(d), LINE)],
        mm.PatchEmbed: [(mm.PatchEmbed(v("c", 3), d, v("p", 2), bias), GRID) for bias in (True, False)],
        mm.Conv2d: [(conv, {"b": 2, "i": 5, "j": 4}) for conv in (mm.Conv2d(d, v("o", 5), v("p3", 3)), strided)],
        mm.MlpProjector: [(mm.MlpProjector(k, v("c", 3), d, depth), LINE) for k in ("identity", "linear", "mlp_gelu")],
        _Activated: [(_Activated(d), LINE)],
        mm.SideBySide: [(mm.SideBySide(d, v("o", 5)), {"b": 2, "s": 4, "S": 5})],
        mm.Repeat: [(mm.Repeat(gated, v("l", 2)), LINE)],
        Apart: [(Apart(gated, v("l", 2), (0, 2)), LINE)],
        mm.Sequence: [(mm.Sequence((norm, mlp)), LINE)],
    }


def _vision(v):
    d, h, e, f = v("d", 6), v("h", 2), v("e", 3), v("f", 7)
    norm, mlp, patch = mm.LayerNorm(d), mm.MLPBlock(d, f), mm.PatchEmbed(v("c", 3), d, v("p", 2))
    attention, plain = (kind(d, h, e, v("side", 4)) for kind in (mm.Attention, mm.GridAttention))
    windowed, full = (mm.Block(attention, mlp, norm, w) for w in (v("w", 3), None))
    merged, split = mm.NoTPAttention(d, h, e), mm.SelfAttention(d, h, e)
    block = mm.NoTPTransformerBlock(merged, mm.NoTPFeedForward(d, f), norm)
    encoder = mm.Transformer(mm.ResidualBlock(split, mm.MLP(d, f), norm), v("l", 2))
    transformer = mm.NoTPTransformer(block, v("l", 2))
    embeddings, own = (mm.CLIPVisionEmbeddings(patch, v("n", 30), pixels) for pixels in (False, True))
    norm2d, neck = mm.LayerNorm2d(v("o", 5)), mm.Conv2d(d, v("o", 5), v("p3", 3))
    blocks = (mm.Repeat(windowed, v("l", 2)), full)

    def sam(width):
        halved = mm.Conv2d(v("o", 5), width, v("p3", 3), 2)
        return mm.ImageEncoderViT(patch, blocks, (neck,), norm2d, (halved,), v("U", 9))

    clip, tower = mm.VitModel(embeddings, norm, transformer), mm.PatchTower(mm.VitModel(own, norm, encoder))
    deep = mm.DeepEncoder(sam(d), clip)
    prefix, width = PrefixAttention(d, v("g", 2), v("r", 3), v("e2", 4)), mm.RotaryEmbedding(v("e2", 4))
    asked = mm.Transformer(mm.ResidualBlock(prefix, mm.GatedMLP(d, f), mm.RMSNorm(d)), v("l", 2))
    asking = [QueryTower(sam(d), width, asked, mm.RMSNorm(d), v(f"few{few}", few), v("many", 9)) for few in (3, 8)]
    join = RowsJoin(d, ("crops", "global"))
    views = (("crops", None, None, False), ("global", 4, 6, True))
    projector = mm.MlpProjector("linear", d + d, d)
    joined = {"b": 2, "image": 30, "tokens_crops": 20, "patches_crops": 12, "tokens_global": 9, "patches_global": 6}
    crops = {"count_crops": 2, "rows_crops": 4, "columns_crops": 5}
    seen = {"b": 2, "image": 23, "tokens_crops": 14, "tokens_global": 8}
    return {
        mm.Attention: [
            (attention, GRID), (mm.Attention(d, h, e, v("side", 4), relative=False), GRID), (attention, GRID | {"b": 1}),
        ],
        mm.GridAttention: [(plain, GRID)],
        mm.GridBlock: [(mm.GridBlock(plain, mm.MLP(d, f), norm, v("w", 3)), GRID)],
        mm.Block: [(windowed, GRID), (full, GRID)],
        mm.ImageEncoderViT: [(sam(v("o2", 6)), GRID)],
        mm.SelfAttention: [(split, LINE)],
        mm.NoTPAttention: [(merged, LINE), (merged, LINE | {"b": 1})],
        mm.NoTPTransformerBlock: [(block, LINE)],
        mm.NoTPTransformer: [(transformer, LINE)],
        mm.Transformer: [(encoder, LINE)],
        mm.CLIPVisionEmbeddings: [(embeddings, GRID), (own, GRID)],
        mm.VitModel: [(clip, GRID)],
        mm.PatchTower: [(tower, GRID)],
        mm.DeepEncoder: [(deep, GRID)],
        PrefixAttention: [(prefix, LINE), (prefix, LINE | {"b": 1})],
        QueryTower: [(tower, GRID) for tower in asking],
        Join: [(Join(d, ("crops", "global")), joined)],
        RowsJoin: [(join, joined)],
        SeparatedJoin: [(SeparatedJoin(d, ("crops", "global")), joined | {"patches_crops": 20, "patches_global": 9})],
        VisionStage: [
            (VisionStage(deep, projector, join, views), seen | crops),
            (VisionStage(tower, mm.MlpProjector("linear", d, d), Join(d), views[1:]),
             {"b": 2, "image": 24, "tokens_global": 24}),
            (VisionStage(tower, None, None, views[1:]), {"b": 2, "image": 24, "tokens_global": 24}),
        ],
    }  # fmt: skip


def _native(v):
    h, e, f = v("h", 2), v("e4", 4), v("f", 7)
    d = h * e
    norm = mm.LayerNorm(d)
    rotary, mlp, patch = AxialRotary(e), mm.MLP(d, f, "gelu_pytorch_tanh"), mm.PatchEmbed(v("c", 3), d, v("p", 2))
    whole = mm.RMSNorm(d)
    plain = VisionAttention(d, h, e, bias=False, q_norm=whole, k_norm=whole, wide=False)
    turned = VisionAttention(d, h, e, turned=True)
    near = VisionAttention(d, h, e, turned=True, window=v("w", 3), one_matrix=True)
    blocks = tuple(mm.Repeat(NavitBlock(part, mlp, norm), v("l", 2)) for part in (near, turned))
    windowed = NavitTower(patch, rotary, blocks, windows=True)
    tower = NavitTower(patch, rotary, blocks[1:], norm, v("U", 9))
    scaled = ScaledBlock(plain, mm.MLP(d, f), norm)
    embeddings = mm.CLIPVisionEmbeddings(patch, v("n", 30), own_patches=True)
    merge = MergeProjector(d, f, v("o", 5), norm)
    behind = MergeProjector(8, f, v("o", 5), mm.LayerNorm(8 * 4), copies=2)  # its width tells where the norm stands
    vision = _vision(v)
    (sam, _), *_ = vision[mm.ImageEncoderViT]
    (clip, _), *_ = vision[mm.PatchTower]
    square = {"b": 2, "u": 4, "v": 2}
    windows = tuple(WindowAttention(d, h, e, v("w2", 2), shifted) for shifted in (False, True))
    pair = tuple(SwinBlock(part, mlp, norm) for part in windows)
    wider = SwinBlock(WindowAttention(d * 2, h, e * 2, v("w2", 2)), mm.MLP(d * 2, f), mm.LayerNorm(d * 2))
    stages = (mm.Repeat(mm.Sequence(pair), v("l", 2)), wider)
    return {
        AxialRotary: [(rotary, LINE)],
        AxialRotation: [(AxialRotation(h, e), LINE)],
        ImageAttention: [(ImageAttention(h, e, v("w", 3)), GRID | {"S": 40, "same": 30})],
        VisionAttention: [(plain, LINE), (turned, IMAGES), (near, IMAGES), (replace(near, kinds=2), KINDS)],
        NavitBlock: [(blocks[0].layer, IMAGES)],
        NavitTower: [(tower, IMAGES), (windowed, IMAGES), (windowed.of_kinds(2), KINDS)],
        ScaledBlock: [(scaled, LINE)],
        ClassTower: [(ClassTower(embeddings, mm.Transformer(scaled, v("l", 2))), GRID)],
        MergeProjector: [(merge, LINE), (behind, LINE)],
        ConvProjector: [(ConvProjector(d, mm.LayerNorm(v("o", 5)), mm.GatedMLP(v("o", 5), f), v("p", 2)), LINE)],
        Projected: [(Projected(tower, MergeProjector(d, f, v("o", 5), norm, 1)), {"images": 2, "u": 4, "v": 2})],
        SamTower: [(SamTower(sam), GRID)],
        WindowAttention: [(part, {"b": 2, "s": 3, "W": 2}) for part in windows],
        SwinBlock: [(block, square) for block in pair],
        GridMerge: [(GridMerge(d), GRID)],
        SwinTower: [(SwinTower(patch, norm, stages, (GridMerge(d),)), square)],
        TwinTower: [(TwinTower(sam, clip, v("two", 2), v("half", 3)), {"b": 2, "u": 3, "v": 3})],
    }


def _text(v):
    d, f = v("d", 6), v("f", 7)
    heads = d, v("g", 2), v("r", 3), v("e2", 4)
    table, made = mm.LlamaRotaryEmbedding(v("e2", 4)), mm.RotaryEmbedding(v("e2", 4))
    own, given = mm.LlamaAttention(*heads, table), mm.LlamaAttention(*heads)
    sliding = mm.CausalAttention(*heads, table, v("window", 4))
    gated, rms = mm.DeepseekV2MLP(d, f), mm.DeepseekV2RMSNorm(d)
    router, gate = (kind(d, v("E", 5), v("k", 2)) for kind in (mm.Router, mm.MoEGate))
    moe, alone = mm.DeepseekV2MoE(gate, f, gated), mm.MergedExpertsMoE(gate, f, None)
    dense, mixed = (mm.DeepseekV2DecoderLayer(own, m, rms) for m in (gated, moe))
    block = mm.ResidualBlock(given, mm.GatedMLP(d, f), mm.RMSNorm(d))
    embedding, head = mm.TokenEmbedding(v("V", 11), d), mm.LMHead(v("V", 11), d)
    lm = mm.CausalLM(embedding, (dense, mm.Repeat(mixed, v("l", 2))), rms, head)
    tied = mm.CausalLM(embedding, (mm.Repeat(block, v("l", 2)),), mm.RMSNorm(d), head, made, tied=True)
    wide = v("e4", 4)
    other = mm.CausalAttention(*heads[:3], wide, turned=v("turned", 2), bias="qkvo", one_matrix=True, capped=True,
                               q_norm=mm.WideRMSNorm(wide), k_norm=mm.CenteredNorm(wide))  # fmt: skip
    sinks = mm.CausalAttention(*heads, rotation="none", sinks=True, q_norm=mm.RMSNorm(v("e2", 4)), bias="qkv")
    latents = v("h", 2), v("e2", 4), v("T", 2), v("o", 5), v("c", 3)
    low = mm.LatentAttention(d, *latents, low=v("low", 3), bias=True, rotation="direct")
    sigmoid = mm.Router(d, v("E4", 4), v("k", 2), "sigmoid", correction="parameter", G=v("G", 2), kept=1,
                        best=v("best", 2), renormalised=True, guarded=True)  # fmt: skip
    grouped = mm.Router(d, v("E4", 4), v("k", 2), correction="buffer", G=v("G", 2), kept=1, scaled=False)
    chosen = mm.Router(d, v("E", 5), v("k", 2), "chosen", wide=False, bias=True)
    clamped = mm.Mixture(chosen, f, mm.GatedMLP(d, f, bias=True, one_matrix=True), "clamped", True, True)
    sandwich = mm.ResidualBlock(given, mm.MLP(d, f, "gelu_new", False), rms, norms="both", scaled=True)
    after = mm.ResidualBlock(given, mm.MLP(d, f, "relu"), rms, norms="after")
    beside = [mm.ResidualBlock(given, mm.MLP(d, f), rms, parallel=norms) for norms in ("one", "two")]
    scaled = mm.TokenEmbedding(v("V", 11), d, scaled=True), mm.LMHead(v("V", 11), d, True, True, True)
    near = mm.ResidualBlock(mm.CausalAttention(*heads, window=v("window", 4)), mm.GatedMLP(d, f), rms)
    read = v("h", 2), v("e", 3)
    causal = mm.CausalAttention(read[0] * read[1], read[0], 1, read[1], rotation="none", bias="qkvo", wide=False)
    crosses = [mm.CrossAttention(causal.d, *read, filled) for filled in (False, True)]
    decoders = [mm.CrossBlock(causal, part, mm.MLP(causal.d, f), mm.LayerNorm(causal.d)) for part in crosses]
    learned = mm.LearnedPositions(v("n", 30), mm.LayerNorm(causal.d))
    words = mm.TokenEmbedding(v("V", 11), causal.d, scaled=True), mm.LMHead(v("V", 11), causal.d)
    mbarts = [
        mm.CausalLM(words[0], (mm.Repeat(part, v("l", 2)),), learned.norm, words[1], learned=learned)
        for part in decoders
    ]
    two = mm.CausalLM(scaled[0], (near, after), rms, scaled[1], made, local_rotary=made)
    scans = [mm.GatedDeltaNet(d, *heads[1:], v("o", 5), v("p", 2), v("C", 3), form) for form in ("chunked", "step")]
    return {
        mm.GatedDeltaNet: [(scans[0], LINE), (scans[0], LINE | {"s": 1}), (scans[1], LINE | {"s": 1})],
        mm.LlamaRotaryEmbedding: [(table, LINE)],
        mm.RotaryEmbedding: [
            (made, LINE),
            *((mm.RotaryEmbedding(v("e2", 4), k), LINE) for k in ("narrow", "polar", "sections")),
        ],
        mm.CausalAttention: [(sliding, TEXT), (sliding, TEXT | {"t": 9}), (other, TEXT), (sinks, TEXT)],
        mm.CrossAttention: [(part, LINE | {"source": 4}) for part in crosses],
        mm.CrossBlock: [(part, TEXT | {"source": 4}) for part in decoders],
        mm.LearnedPositions: [(learned, LINE)],
        mm.LatentAttention: [(mm.LatentAttention(d, *latents), TEXT), (low, TEXT)],
        mm.LlamaAttention: [(own, TEXT), (own, TEXT | {"s": 1}), (given, TEXT)],
        mm.LlamaFlashAttention2: [(mm.LlamaFlashAttention2(*heads, table), TEXT)],
        mm.Router: [(r, LINE) for r in (router, sigmoid, grouped, chosen)],
        mm.MoEGate: [(gate, LINE)],
        mm.Experts: [(mm.Experts(d, v("E", 5), f), LINE | {"k": 2})],
        mm.MergedExperts: [(mm.MergedExperts(d, v("E", 5), f), LINE | {"k": 2})],
        mm.Mixture: [(mm.Mixture(router, f, mm.GatedMLP(d, f)), LINE), (clamped, LINE)],
        mm.DeepseekV2MoE: [(moe, LINE), (mm.DeepseekV2MoE(gate, f, None), LINE), (moe, {"b": 1, "s": 1})],
        mm.MergedExpertsMoE: [(alone, LINE)],
        mm.ResidualBlock: [(part, TEXT) for part in (block, sandwich, after, *beside)],
        mm.DeepseekV2DecoderLayer: [(layer, TEXT) for layer in (dense, mixed)],
        mm.TokenEmbedding: [(embedding, LINE), (scaled[0], LINE)],
        mm.LMHead: [(head, LINE), (scaled[1], LINE)],
        mm.CausalLM: [(lm, TEXT), (tied, TEXT), (two, TEXT), *((part, TEXT | {"source": 4}) for part in mbarts)],
    }


def every_example(v=lambda name, value: value):
    return [(type(layer).__name__, layer, sizes) for pairs in examples(v).values() for layer, sizes in pairs]


CASES = every_example()
IDS = [f"{name}{index}" for index, (name, _, _) in enumerate(CASES)]


def layer(body, fields="d f", sizes="b s", name="Bad", **attributes):
    """A class of layers whose equations are those of `body(n)`."""
    namespace = {"ops": lambda self, n: iter(body(n)), "sizes": sizes, **attributes}
    return make_dataclass(
        name, [(f, Size) for f in fields.split()], bases=(BaseLayer,), frozen=True, namespace=namespace
    )
