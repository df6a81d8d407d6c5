"""The runtime vllm: laws of its passes, counted by loops and by a hand-written list of the engine's kernels."""

from dataclasses import replace
from math import prod

import pytest

import modelmeter
from modelmeter import InputError, Runtime
from modelmeter.fits import Fits, request_of
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.vlm import text_model
from modelmeter.runtimes.lifetimes import last_read
from modelmeter.runtimes.passes import attention_kernel, last_logits
from modelmeter.runtimes.serving import paged

D, H, G, E, F, V = 48, 6, 2, 8, 72, 50
PLAIN = Runtime("plain", (last_logits, attention_kernel), last_read)
PAGED = Runtime("paged", (last_logits, attention_kernel, paged), last_read)


def llama(layers, **fields):
    given = {
        "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": layers, "model_type": "llama",
        "num_attention_heads": H, "num_key_value_heads": G, "max_position_embeddings": 512, "tie_word_embeddings": False,
    }  # fmt: skip
    return model_of({**given, **fields})


def mixture(layers, experts=4, active=2, f=24, shared=40):
    fields = {
        "family": "deepseek", "hidden": D, "heads": H, "kv_heads": H, "dense_mlp": F, "dense_layers": 1,
        "moe_layers": layers, "experts": experts, "active": active, "expert_mlp": f, "shared_mlp": shared,
        "gate_up": "split", "rotary": "model", "vocabulary": V, "positions": 512, "tied": False,
    }  # fmt: skip
    return text_model("mixture", component("decoder", fields))


def blocks(tokens):
    """Blocks of 16 that hold so many tokens, one token after the other."""
    held = 0
    for token in range(tokens):
        held += token % 16 == 0
    return held


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("tokens", (1, 15, 16, 17, 33, 64))
def test_a_paged_cache_is_its_blocks_and_each_layer_reads_the_table_and_the_slots(tokens, batch):
    model = llama(3)
    found, plain = (model.cost("prefill", model.text(tokens, batch=batch, runtime=r)) for r in (PAGED, PLAIN))
    assert found.kv_cache_bytes == batch * blocks(tokens) * 16 * 3 * 2 * G * E * 2
    assert plain.kv_cache_bytes == batch * tokens * 3 * 2 * G * E * 2
    assert found.io_bytes - plain.io_bytes == 3 * batch * (4 * blocks(tokens) + 8 * tokens)
    assert found.kv_io_bytes == plain.kv_io_bytes and found.flops == plain.flops


@pytest.mark.parametrize("runtime", (PAGED, "vllm"), ids=str)
def test_many_steps_are_the_sum_of_single_ones(runtime):
    for model in (llama(3), mixture(2)):
        steps = [model.cost("decode", model.text(20 + i, decode_steps=1, batch=2, runtime=runtime)) for i in range(40)]
        together = model.cost("decode", model.text(20, decode_steps=40, batch=2, runtime=runtime))
        for count in ("tensor_core_flops", "cuda_core_flops", "activation_io_bytes", "kv_io_bytes"):
            assert sum(getattr(step, count) for step in steps) == getattr(together, count)
        assert sum(step.weight_io_bytes for step in steps) == pytest.approx(together.weight_io_bytes, rel=1e-12)
        assert together.kv_cache_bytes == steps[-1].kv_cache_bytes
        assert together.peak_activation_bytes == max(step.peak_activation_bytes for step in steps)


def a(*shape, bits=16):
    return prod(shape) * bits // 8


def norm(n):
    """Norm of a sum, which is written too."""
    return 2 * a(n, D) + a(D), 2 * a(n, D)


def gated(n, f):
    """Product of gate and up in one, the activation with the product, down."""
    return [(a(n, D) + a(2 * f, D), a(n, 2 * f)), (a(n, 2 * f), a(n, f)), (a(n, f) + a(f, D), a(n, D))]


def attention(b, s, t, g, tail):
    """qkv, rotary embedding, the write into the cache, attention on blocks, the projection of its result, a norm."""
    n, q, k = b * s, H * E, g * E
    return [
        (a(n, D) + a(q + 2 * k, D), a(n, q + 2 * k)),
        (a(n, q + k) + a(n, E) + 8 * n, a(n, q + k)),
        (a(n, 2 * k) + 8 * n, a(n, 2 * k)),
        (a(n, q) + 2 * a(b, t, k) + 4 * b * blocks(t), a(n, q)),
        (a(n, q) + a(q, D), a(n, D)),
        norm(n),
        *tail,
        norm(n),
    ]


def experts(n, many, active, f, shared):
    """Router, choice of experts, order of them, product, activation, product, sum; shared experts, and the sum."""
    rows, words = n * active, 4 * n * active
    return [
        (a(n, D) + a(many, D), a(n, many)),
        (a(n, many), 2 * words),
        (words, words),
        (a(n, D) + many * a(2 * f, D) + words, a(rows, 2 * f)),
        (a(rows, 2 * f), a(rows, f)),
        (a(rows, f) + many * a(f, D) + 2 * words, a(rows, D)),
        (a(rows, D), a(n, D)),
        *gated(n, shared),
        (2 * a(n, D), a(n, D)),
    ]


def around(b, s, layers):
    """Row of the table, the first norm; the layers; the last position and the head."""
    n = b * s
    first = [(a(n, D), a(n, D)), (a(n, D) + a(D), a(n, D))]
    return [*first, *layers, (a(b, D), a(b, D)), (a(b, D) + a(V, D), a(b, V))]


def launched(model, stage, prompt, **options):
    found = []
    for kernel in model.kernels(stage, model.text(prompt, runtime="vllm", **options)):
        found += [(sum(kernel.read_bytes.values()), sum(kernel.written_bytes.values()))] * int(kernel.runs)
    return found


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("layers", (1, 2, 5))
def test_the_kernels_of_a_llama_are_those_of_a_hand_written_list(layers, batch):
    for stage, s, past in (("prefill", 21, 0), ("decode", 1, 35)):
        options = {"prompt": past or s, "decode_steps": 1, "batch": batch}
        layer = attention(batch, s, past + s, G, gated(batch * s, F))
        assert len(layer) == 10
        by_hand = around(batch, s, layers * layer)
        assert sorted(launched(llama(layers), stage, **options)) == sorted(by_hand)


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("layers", (1, 2, 4))
def test_the_kernels_of_a_deepseek_mixture_are_those_of_a_hand_written_list(layers, batch):
    """All experts are active, so that each is read."""
    model = mixture(layers, experts=3, active=3)
    for stage, s, past in (("prefill", 21, 0), ("decode", 1, 35)):
        options = {"prompt": past or s, "decode_steps": 1, "batch": batch}
        dense, mixed = (
            attention(batch, s, past + s, H, tail) for tail in (gated(batch * s, F), experts(batch * s, 3, 3, 24, 40))
        )
        assert (len(dense), len(mixed)) == (10, 18)
        by_hand = around(batch, s, dense + layers * mixed)
        assert sorted(launched(model, stage, **options)) == sorted(by_hand)


@pytest.mark.parametrize(
    "name", ("llama_3_2_1b", "qwen3_0_6b", "qwen3_30b_a3b", "deepseek_ocr", "gpt_oss_20b", "gemma_2_2b")
)
def test_products_weights_and_cache_are_those_of_the_layers(name):
    """Nothing that is multiplied or stored is lost; what a table of cosines took to make is, as it is made once."""
    model = modelmeter.load_model(name, ["decoder.rotary=model"] if name == "deepseek_ocr" else [])
    for stage in ("prefill", "decode"):
        ours, plain = (model.cost(stage, model.text(64, decode_steps=16, runtime=r)) for r in ("vllm", PLAIN))
        for count in ("tensor_core_flops", "parameters", "weight_bytes", "weight_io_bytes", "kv_io_bytes"):
            assert getattr(ours, count) == getattr(plain, count)
        assert ours.kv_cache_bytes == plain.kv_cache_bytes  # whole blocks
        assert ours.cuda_core_flops < plain.cuda_core_flops and ours.io_bytes < plain.io_bytes


def test_vision_is_that_of_flash_without_copies(model):
    page = {"grid": "1x2"}
    ours, flash = (model.cost("vision", model.workload(runtime=r, **page)) for r in ("vllm", PLAIN))
    assert replace(ours, basis="") == replace(flash, basis="", peak_activation_bytes=ours.peak_activation_bytes)


def test_whether_a_page_fits_counts_whole_blocks(model):
    for runtime, cells in (("vllm", 8192), ("flash", 8177)):
        fits = Fits(model, request_of(model, 8177, runtime=runtime, grid="1x2", prompt_tokens=1))
        (decode,) = (room for room in fits.rooms if room.stage == "decode")
        assert decode.kv_cache == cells * 61_440
    assert blocks(8177) * 16 == 8192


def test_a_runtime_says_how_its_kernels_are_launched():
    assert (Runtime.of("vllm").launch, Runtime.of("eager").launch) == ("graph", "eager")
    with pytest.raises(InputError, match="unknown launch of runtime 'x': 'graphs'"):
        Runtime("x", (), launch="graphs")
