"""The runtime `eager` is what eager code does: every kernel of transformers' modules, its bytes, and live storages.

Left out on both sides is what depends on weights and shapes alone (masks, tables of relative positions, casts of
weights), and what a layer says that it omits.
"""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from operators import LiveStorages, Operators  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaDecoderLayer  # noqa: E402

import modelmeter  # noqa: E402
from modelmeter import layers as mm  # noqa: E402
from modelmeter.models.config_json import model_of  # noqa: E402
from modelmeter.models.families import deepencoder, deepseek  # noqa: E402
from modelmeter.validate.decoders import module_of  # noqa: E402
from modelmeter.validate.deepseek_ocr import OVERRIDES, cached, config, inner, ocr  # noqa: E402

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def split_model():
    """DeepSeek-OCR with transformers' kernels."""
    return modelmeter.load_model("deepseek_ocr", OVERRIDES)


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"), torch.no_grad():
        yield


def tower(heads=2, side=8, window=3):
    sam = dict(hidden=4 * heads, heads=heads, mlp=10, patch=2, grid=side, window=window)
    clip = dict(hidden=5 * heads, heads=heads, mlp=7, layers=2, patch=2, projections="split", positions=17)
    sam |= dict(window_blocks=2, global_blocks=1, neck=3, downsample=[4, 5 * heads])
    return deepencoder(sam=sam, clip=clip)


def decoder(kv=2, group=1, experts=3):
    """All experts are active, so that each is read (grouped kernels are given all)."""
    heads = kv * group
    return deepseek(
        hidden=8 * heads, heads=heads, kv_heads=kv, dense_mlp=9, dense_layers=1, moe_layers=2, experts=experts,
        active=experts, expert_mlp=8, shared_mlp=16, gate_up="merged", rotary="model", vocabulary=50, positions=8192,
        tied=False,
    )  # fmt: skip


def eager(tower, decoder):
    return config(tower, decoder, "eager", "grouped_mm")


def made(module):
    return module.to(HALF).eval()


def empty(*shape):
    return torch.empty(*shape, dtype=HALF)


def kernels_of(layer, **sizes):
    """Bytes read and written by each kernel that runs on more than weights, with how often."""
    found = Counter()
    for kernel in layer.program(runtime="eager").kernels(**sizes):
        if kernel.runs and set(kernel.read_bytes) - {"weight"}:
            found[sum(kernel.read_bytes.values()), sum(kernel.written_bytes.values())] += int(kernel.runs)
    return found


def operators_of(run, inputs):
    with Operators(inputs) as operators:
        run()
    return Counter((kernel.bytes_read, kernel.bytes_written) for kernel in operators.kernels)


def assert_same_kernels(layer, sizes, module, *inputs, run=None):
    assert kernels_of(layer, **sizes) == operators_of(run or (lambda: module(*inputs)), inputs), sizes


def cache_of(b, kv, past, width, layers=1):
    return cached(empty(b, kv, past, width), empty(b, kv, past, width), layers)


def kept(cache):
    return [(layer.keys, layer.values) for layer in cache.layers]


class VendorsLayerNorm2d(nn.Module):
    """As the vendor writes it, in deepencoder/sam_vary_sdpa.py."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@pytest.mark.parametrize("b", [1, 2])
def test_norms(b):
    for layer, module, sizes, shape in (
        (mm.RMSNorm(8), ocr.UnlimitedOcrTextRMSNorm(8), {"s": 5}, (5, 8)),
        (mm.LayerNorm(8), nn.LayerNorm(8), {"s": 5}, (5, 8)),
        (mm.LayerNorm2d(8), VendorsLayerNorm2d(8), {"u": 3, "v": 4}, (8, 3, 4)),
    ):
        assert_same_kernels(layer, {"b": b} | sizes, made(module), empty(b, *shape))


@pytest.mark.parametrize("b", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_over_a_grid_with_copies_where_axes_do_not_merge(heads, b):
    sam = tower(heads)
    layer = inner(sam.sam.blocks)[1].attention
    module = made(ocr.UnlimitedOcrSamVisionAttention(eager(sam, decoder()).vision_config.sam_config, 0))
    for u in (1, 2, 3):
        for v in (1, 2, 3):
            assert_same_kernels(layer, {"b": b, "u": u, "v": v}, module, empty(b, u, v, 4 * heads))


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize(("window", "side"), [(3, 8), (4, 8), (3, 3), (8, 5), (0, 8)])
def test_sam_blocks_with_and_without_padding(window, side, b):
    for heads in (1, 3):
        sam = tower(heads, side, window or 3)
        block = inner(sam.sam.blocks)[0 if window else 1]
        module = made(ocr.UnlimitedOcrSamVisionLayer(eager(sam, decoder()).vision_config.sam_config, window))
        for u, v in ((side, side), (side, side - 1), (side - 1, side), (side + 1, 1)):
            assert_same_kernels(block, {"b": b, "u": u, "v": v}, module, empty(b, u, v, 4 * heads))


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_clip_blocks_and_the_whole_of_clip(heads, b):
    clip = tower(heads)
    cfg = eager(clip, decoder()).vision_config.encoder_config
    module, width = made(ocr.UnlimitedOcrEncoderLayer(cfg)), 5 * heads
    for s in (1, 6):
        x = empty(b, s, width)
        assert_same_kernels(clip.clip.transformer.block, {"b": b, "s": s}, module, x, run=lambda x=x: module(x, None))
    whole = made(ocr.UnlimitedOcrVisionEncoder(cfg))
    assert_same_kernels(clip.clip, {"b": b, "u": 2, "v": 3}, whole, empty(b, width, 2, 3))


@pytest.mark.parametrize("b", [1, 2])
def test_the_whole_of_sam_but_for_its_two_written_out_norms(b):
    sam = tower(2)
    module = made(ocr.UnlimitedOcrSamVisionEncoder(eager(sam, decoder()).vision_config.sam_config))
    sizes, x = {"b": b, "u": 8, "v": 12}, empty(b, 3, 16, 24)
    neck, norm = sam.sam.neck_norm, mm.LayerNorm(sam.sam.neck_norm.c)  # transformers calls a kernel for these
    ours = kernels_of(sam.sam, **sizes) - Counter({k: 2 * many for k, many in kernels_of(neck, **sizes).items()})
    ours += Counter({k: 2 * many for k, many in kernels_of(norm, b=b, s=8 * 12).items()})
    assert ours == operators_of(lambda: module(x), x)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("s", [1, 2, 5])
def test_rotary_tables_router_and_grouped_experts(s, b):
    text = decoder()
    cfg = eager(tower(), text).text_config
    x, positions = empty(b, s, text.d), torch.zeros(b, s, dtype=torch.long)
    assert_same_kernels(text.rotary, {"b": b, "s": s}, ocr.UnlimitedOcrTextRotaryEmbedding(cfg), x, positions)
    mixture, module = inner(text.layers)[1].mlp, made(ocr.UnlimitedOcrTextMoe(cfg))
    assert_same_kernels(mixture.gate, {"b": b, "s": s}, module.gate, x)
    assert_same_kernels(mixture, {"b": b, "s": s}, module, x)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("past", [0, 1, 7])
@pytest.mark.parametrize(("kv", "group"), [(1, 1), (2, 1), (1, 3)])
def test_the_language_model_with_a_cache_but_for_its_lookup(kv, group, past, b):
    text = decoder(kv, group)
    module, head = (
        made(ocr.UnlimitedOcrTextModel(eager(tower(), text).text_config)),
        made(nn.Linear(text.d, 50, bias=False)),
    )
    for s in (1, 5) if past == 0 else (1,):
        x, positions, cache = empty(b, s, text.d), torch.zeros(b, s, dtype=torch.long), cache_of(b, kv, past, 8, 3)

        def run(x=x, positions=positions, cache=cache):
            found = module(inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True)
            head(found.last_hidden_state)

        inputs = x, positions, kept(cache)
        assert_same_kernels(text, {"b": b, "s": s, "t": s + past}, module, *inputs, run=run)


def llama(kv, group, head, mlp):
    """A dense decoder layer with grouped KV heads, which unlimited_ocr's eager code does not run."""
    d = kv * group * head
    made_for = dict(hidden_size=d, num_attention_heads=kv * group, num_key_value_heads=kv, intermediate_size=mlp)
    module = made(LlamaDecoderLayer(LlamaConfig(**made_for, num_hidden_layers=1, attn_implementation="eager"), 0))
    return mm.ResidualBlock(mm.LlamaAttention(d, kv, group, head), mm.GatedMLP(d, mlp), mm.RMSNorm(d)), module


def prepared(b, kv, head, width, s, past):
    x, tables, mask = empty(b, s, width), (empty(b, s, head), empty(b, s, head)), empty(b, 1, s, s + past)
    cache = cache_of(b, kv, past, head)
    arguments = dict(position_embeddings=tables, past_key_values=cache, attention_mask=mask)
    return (x, tables, mask), x, arguments, cache


THREE = {"glm_ocr_text": {"partial_rotary_factor": 0.5}, "qwen2_vl_text": {}, "qwen2_5_vl_text": {},
         "paddleocr_vl_text": {"use_bias": False, "tie_word_embeddings": False}}  # fmt: skip


def three_positions(kind):
    """A decoder whose positions are time, row and column, and its module."""
    fields = {"model_type": kind, "vocab_size": 50, "hidden_size": 48, "intermediate_size": 20, "num_hidden_layers": 2,
              "num_attention_heads": 6, "num_key_value_heads": 2, **THREE[kind]}  # fmt: skip
    fields |= {"pad_token_id": None, "head_dim": 8} if "qwen" not in kind else {}
    rope = {"rope_type": "default", "rope_theta": 10000, "mrope_section": [1, 1] if "glm" in kind else [1, 2, 1]}
    fields["rope_parameters"] = rope | {key: fields[key] for key in fields if key == "partial_rotary_factor"}
    return model_of(fields, kind).stages[0].layer, module_of(fields, "eager").model


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", THREE)
def test_tables_of_three_positions_and_the_layers_that_turn_by_them(kind, b):
    text, module = three_positions(kind)
    (block,) = (stack.layer for stack in text.layers)
    kv, head = block.attention.g, block.attention.e
    for s, past in ((1, 0), (5, 0), (1, 7)):
        x, positions = empty(b, s, text.d), torch.zeros(3, b, s, dtype=torch.long)
        assert_same_kernels(text.rotary, {"b": b, "s": s}, module.rotary_emb, x, positions)
        live = live_bytes(lambda x=x, p=positions: module.rotary_emb(x, p), positions, module)
        frequencies = 4 * text.rotary.e // 2  # ours are an input, theirs a buffer
        assert peak_of(text.rotary, b=b, s=s) == live + frequencies
        inputs, x, arguments, cache = prepared(b, kv, head, text.d, s, past)
        arguments["position_embeddings"] = tables = empty(b, s, text.rotary.e), empty(b, s, text.rotary.e)
        run = lambda x=x, given=arguments: module.layers[0](x, **given)
        given = x, tables, inputs[2], kept(cache)
        assert_same_kernels(block, {"b": b, "s": s, "t": s + past}, module, *given, run=run)


DENSE = [(10, 1, 128, 6848), (2, 5, 128, 6848), (2, 2, 8, 9), (2, 4, 8, 9)]
WHERE = [(1, 493, 0), (2, 493, 0), (1, 5, 0), (2, 5, 0), (1, 1, 492), (2, 1, 492), (1, 1, 4), (2, 3, 4)]


@pytest.mark.parametrize(("b", "s", "past"), WHERE)
@pytest.mark.parametrize(("kv", "group", "head", "mlp"), DENSE)
def test_a_dense_decoder_layer_kernel_by_kernel(kv, group, head, mlp, b, s, past):
    layer, module = llama(kv, group, head, mlp)
    inputs, x, arguments, cache = prepared(b, kv, head, layer.d, s, past)
    sizes = {"b": b, "s": s, "t": s + past}
    assert_same_kernels(layer, sizes, module, *inputs, kept(cache), run=lambda: module(x, **arguments))


def live_bytes(run, given, *modules):
    """The most that is alive; what `given` holds alone goes when the run lets go of it."""
    with LiveStorages(given, [w for module in modules for w in (*module.parameters(), *module.buffers())]) as live:
        del given
        run()
    return live.peak


def peak_of(layer, **sizes):
    cost = layer.cost(runtime="eager", **sizes)
    return cost.peak_activation_bytes + cost.kv_cache_bytes


@pytest.mark.parametrize(("b", "s", "past"), WHERE)
@pytest.mark.parametrize(("kv", "group", "head", "mlp"), DENSE)
def test_a_dense_decoder_layers_peak_is_its_live_storages_to_the_byte(kv, group, head, mlp, b, s, past):
    """Softmax in fp32, repeated heads, the cache that is concatenated: at 493 tokens, with grouped heads, batched."""
    layer, module = llama(kv, group, head, mlp)
    inputs, x, arguments, cache = prepared(b, kv, head, layer.d, s, past)
    live = live_bytes(lambda: module(x, **arguments), (inputs, kept(cache) if past else ()), module)
    assert peak_of(layer, b=b, s=s, t=s + past) == live


@pytest.mark.parametrize("b", [1, 2])
def test_peaks_of_vision_are_live_storages_to_the_byte(b, split_model):
    for parts, grids in ((tower(), ((8, 8), (8, 9))), (split_model.tower, ((64, 64), (40, 40)))):
        sam, clip, cfg = parts.sam, parts.clip, eager(parts, decoder()).vision_config
        windowed, full = inner(sam.blocks)
        for u, v in grids:
            x, pixels = empty(b, u, v, sam.patch.d), empty(b, 3, u * sam.patch.p, v * sam.patch.p)
            for layer, module, given in (
                (windowed, ocr.UnlimitedOcrSamVisionLayer(cfg.sam_config, windowed.w), x),
                (full, ocr.UnlimitedOcrSamVisionLayer(cfg.sam_config, 0), x),
                (sam, ocr.UnlimitedOcrSamVisionEncoder(cfg.sam_config), pixels),
            ):
                module = made(module)
                assert peak_of(layer, b=b, u=u, v=v) == live_bytes(lambda m=module, g=given: m(g), given, module)
        block, module = clip.transformer.block, made(ocr.UnlimitedOcrEncoderLayer(cfg.encoder_config))
        tokens = empty(b, 257, clip.d)
        assert peak_of(block, b=b, s=257) == live_bytes(lambda t=tokens, m=module: m(t, None), tokens, module)


@pytest.mark.parametrize(("b", "s"), [(1, 493), (2, 493), (2, 5)])
def test_a_mixtures_peak_but_for_logits_and_weights_that_its_code_still_names(b, s, split_model):
    """transformers holds the router's logits under `_`, and the weights of the chosen beside their sorted copy."""
    for text in (decoder(), split_model.decoder):
        mixture, module = inner(text.layers)[1].mlp, made(ocr.UnlimitedOcrTextMoe(eager(tower(), text).text_config))
        x, named = empty(b, s, text.d), 4 * b * s * (mixture.gate.E + mixture.gate.k)
        assert peak_of(mixture, b=b, s=s) + named == live_bytes(lambda x=x, m=module: m(x), x, module)
        assert peak_of(mixture.gate, b=b, s=s) == live_bytes(lambda x=x, m=module: m.gate(x), x, module)


@pytest.mark.parametrize(("b", "s"), [(1, 493), (2, 100)])
def test_the_language_models_peak_but_for_a_second_mask_and_the_frequencies(b, s):
    """unlimited_ocr makes a mask for its sliding layers too; its frequencies are a buffer of the module."""
    text = decoder()
    module, head = (
        made(ocr.UnlimitedOcrTextModel(eager(tower(), text).text_config)),
        made(nn.Linear(text.d, 50, bias=False)),
    )
    x, positions, cache = empty(b, s, text.d), torch.zeros(b, s, dtype=torch.long), cache_of(b, 2, 0, 8)

    def run():
        head(module(inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state)

    mask, frequencies = 2 * b * s * s, 4 * 8 // 2
    assert peak_of(text, b=b, s=s, t=s) + mask - frequencies == live_bytes(run, (x, positions), module, head)
