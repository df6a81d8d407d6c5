"""Three models that are no vision-language model, each of 60 lines or fewer, beside closed forms and transformers."""

import inspect
from dataclasses import dataclass, replace

import pytest

from examples import RUNTIMES
from modelmeter import BaseLayer, Repeat
from modelmeter import layers as mm
from modelmeter.graph.forms import ADD, MUL, SOFTMAX_IN_FP32
from modelmeter.graph.ops import composite, copy, matmul, pointwise, softmax
from modelmeter.models.model import Model, Stage
from modelmeter.models.vlm import language_stages, text_model
from modelmeter.sizes import Size


def sliding(d, f, g, r, e, V, window, local, rounds) -> Model:
    """A decoder of `rounds` times `local` layers with a sliding window and one that sees everything, as Gemma 3."""
    norm, mlp = mm.RMSNorm(d), mm.GatedMLP(d, f)
    near, far = (mm.ResidualBlock(mm.CausalAttention(d, g, r, e, window=w), mlp, norm) for w in (window, None))
    layers = (Repeat(near, local), far) * rounds
    embedding, head = mm.TokenEmbedding(V, d), mm.LMHead(V, d)
    return text_model("sliding", mm.CausalLM(embedding, layers, norm, head, mm.RotaryEmbedding(e)))


@dataclass(frozen=True)
class Attention(BaseLayer):
    """Attention with biases to a cache of its `own` tokens, or in two parts: `source` writes it, `cross` reads it."""

    d: Size
    g: Size
    e: Size
    part: str = "own"
    sizes = "b s t"
    outputs = property(lambda self: "C_k C_v" if self.part == "source" else "y")

    def ops(self, n):
        n = n.bind(r=1)
        for c in "kv" if self.part != "cross" else "":
            yield matmul(f"{c}[b s g e] = x[b s d] * W_{c}[d g e] + W_b{c}[g e]", n)
            yield copy(f"C_{c}[b t:s g e] = {c}[b s g e]", n)
        if self.part == "source":
            return
        yield matmul("q[b s g r e] = x[b s d] * W_q[d g r e] + W_bq[g r e]", n)
        scores = matmul("a[b g r s t] = q[b s g r e] * C_k[b t g e]", n)
        scaled = pointwise("a[b g r s t] = a[b g r s t]", MUL, n)
        weights = softmax("p[b g r s t] = a[b g r s t]", n, row="t", form=SOFTMAX_IN_FP32)
        seen = matmul("o[b s g r e] = p[b g r s t] * C_v[b t g e]", n)
        yield from composite("attention", scores, scaled, weights, seen, mask="mask[b s t]")
        yield matmul("y[b s d] = o[b s g r e] * W_o[g r e d] + W_bo[d]", n)


@dataclass(frozen=True)
class GPT2(BaseLayer):
    """A text-only decoder with a table of positions, and a head that is its embedding."""

    V: Size
    n: Size
    block: mm.ResidualBlock
    l: Size
    sizes, inputs = "b s t", ""

    def ops(self, n):
        n = n.bind(d=self.block.d)
        yield from mm.TokenEmbedding(self.V, n.d).at(n, "embedding", y="h", W_tok="W_tok")
        yield pointwise("h[b s d] = h[b s d] + W_pos[n:s d]", ADD, n)
        yield from self.block.at(n, "layers", times=self.l, x="h", y="h")
        yield from self.block.norm.at(n, "norm", x="h", y="h")
        yield from mm.LMHead(self.V, n.d).at(n, "head", x="h", y="y", W_head="W_tok")


def gpt2(d, f, g, e, V, n, l) -> Model:
    block = mm.ResidualBlock(Attention(d, g, e), mm.MLP(d, f), mm.LayerNorm(d))
    return Model("gpt2", language_stages(GPT2(V, n, block, l)), positions=n)


@dataclass(frozen=True)
class CrossBlock(mm.ResidualBlock):
    """A decoder layer: attention to itself, to the source, MLP."""

    cross: Attention
    sizes = "b s t source"

    def mix(self, n):
        yield from super().mix(n)
        yield pointwise("x[b s d] = x[b s d] + h[b s d]", ADD, n)
        yield from self.norm.at(n, "norm_cross", x="x", y="h")
        yield from self.cross.at(n, "cross", t=n.source, x="h", y="h")


@dataclass(frozen=True)
class Side(BaseLayer):
    """The encoder, with the cache of the source for each layer of the decoder, or the decoder with its head."""

    V: Size
    n: Size
    block: mm.ResidualBlock
    l: Size
    source: Attention | None = None
    inputs = ""
    sizes = property(lambda self: self.block.sizes)
    outputs = property(lambda self: "" if self.source else "y")

    def ops(self, n):
        n, side = n.bind(d=self.block.d), "encoder" if self.source else "decoder"
        yield from mm.TokenEmbedding(self.V, n.d).at(n, "embedding", y="h", W_tok="W_tok")
        yield pointwise(f"h[b s d] = h[b s d] + W_pos_{side}[n:s d]", ADD, n)
        yield from self.block.norm.at(n, f"{side}.norm_embedding", x="h", y="h")
        yield from self.block.at(n, f"{side}.layers", times=self.l, x="h", y="h")
        yield from self.block.norm.at(n, f"{side}.norm", x="h", y="h")
        if self.source:
            yield from self.source.at(n, "decoder.layers.cross", times=self.l, t=n.s, x="h")
        else:
            yield from mm.LMHead(self.V, n.d).at(n, "head", x="h", y="y", W_head="W_tok")


def mbart(d, f, g, e, V, n, l) -> Model:
    own, source, cross = (Attention(d, g, e, part) for part in ("own", "source", "cross"))
    encoder = mm.ResidualBlock(mm.SelfAttention(d, g, e), mm.MLP(d, f), mm.LayerNorm(d))
    decoder = Side(V, n, CrossBlock(own, encoder.mlp, encoder.norm, cross), l)
    encode = Stage("encode", Side(V, n, encoder, l, source), lambda w: {"b": w.batch, "s": w.context_tokens})
    sizes = lambda w: {"b": w.batch, "s": 1, "t": 1, "source": w.context_tokens}
    decode = Stage("decode", decoder, sizes, steps=lambda w: w.decode_steps, grows="t", fixed={"s": 1})
    return Model("mbart", (encode, decode), positions=n)


SLIDING = {"d": 32, "f": 48, "g": 2, "r": 2, "e": 8, "V": 100, "window": 16, "local": 5, "rounds": 2}
WIDTHS = {"d": 32, "f": 48, "g": 4, "e": 8, "V": 100, "n": 66, "l": 3}


def test_each_model_takes_60_lines_or_fewer():
    for parts in ([sliding], [Attention, GPT2, gpt2], [Attention, CrossBlock, Side, mbart]):
        lines = [line for part in parts for line in inspect.getsource(part).splitlines()]
        assert len([line for line in lines if line.strip() and '"""' not in line]) <= 60


@pytest.fixture(scope="module")
def flops():
    """FLOPs of a call by torch's own counter."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    def count(run):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    return count


def on_meta(name, **config):
    """A language model of transformers on the meta device, with eager attention, and token ids."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        settings = getattr(transformers, f"{name}Config")(**config)
        kind = {"MBart": "MBartForConditionalGeneration", "GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
        model = getattr(transformers, kind)._from_config(settings, attn_implementation="eager").eval()
    return model, lambda *shape: torch.zeros(shape, dtype=torch.long, device="meta")


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_a_sliding_window_decoder_has_the_parameters_and_flops_of_mistral(flops):
    s = SLIDING
    module, ids = on_meta(
        "Mistral", hidden_size=s["d"], intermediate_size=s["f"], num_attention_heads=s["g"] * s["r"],
        num_key_value_heads=s["g"], head_dim=s["e"], vocab_size=s["V"], num_hidden_layers=12, sliding_window=None,
    )  # fmt: skip
    model = sliding(**s)
    assert model.storage().parameters == parameters(module)
    for batch, tokens in ((1, 7), (3, 16)):  # within the window
        work = model.text(tokens, batch=batch)
        assert model.cost("prefill", work).tensor_core_flops == flops(lambda: module(ids(batch, tokens)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_sliding_window_decoder_sees_and_keeps_no_more_than_its_windows(runtime):
    s, prompt, steps = SLIDING, 10, 40
    model = sliding(**s)
    work = model.text(prompt, decode_steps=steps, runtime=runtime)
    heads, total = s["g"] * s["r"], prompt + steps
    seen = sum(s["local"] * min(t, s["window"]) + t for t in range(prompt + 1, total + 1)) * s["rounds"]
    projections = 2 * s["d"] * s["e"] * (2 * heads + 2 * s["g"]) + 2 * 3 * s["d"] * s["f"]
    fixed = steps * (12 * projections + 2 * s["d"] * s["V"])
    cost = model.cost("decode", work)
    assert cost.tensor_core_flops == fixed + 2 * 2 * heads * s["e"] * seen
    kept = (s["local"] * min(total, s["window"] - 1) + total) * s["rounds"]
    assert cost.kv_cache_bytes == 2 * kept * s["g"] * s["e"] * 2
    if runtime != "eager":  # each step reads what it sees and writes one position a layer
        assert cost.kv_io_bytes == 2 * 2 * s["g"] * s["e"] * (seen + 12 * steps)


def test_a_text_model_has_the_parameters_and_flops_of_gpt2(flops):
    w = WIDTHS
    module, ids = on_meta(
        "GPT2", n_embd=w["d"], n_inner=w["f"], n_head=w["g"], n_layer=w["l"], n_positions=w["n"], vocab_size=w["V"]
    )
    model = gpt2(**w)
    assert model.storage().parameters == parameters(module)
    for batch, tokens in ((1, 7), (3, 20)):
        work = model.text(tokens, batch=batch, decode_steps=1)
        assert model.cost("prefill", work).tensor_core_flops == flops(lambda: module(ids(batch, tokens)))
        past = module(ids(batch, tokens)).past_key_values
        step = flops(lambda: module(ids(batch, 1), past_key_values=past))
        assert model.cost("decode", work).tensor_core_flops == step
    assert model.is_beyond(w["n"] + 1) and not model.is_beyond(w["n"])


def test_an_encoder_decoder_has_the_parameters_and_flops_of_mbart(flops):
    w = WIDTHS
    module, ids = on_meta(
        "MBart", d_model=w["d"], encoder_ffn_dim=w["f"], decoder_ffn_dim=w["f"], encoder_attention_heads=w["g"],
        decoder_attention_heads=w["g"], encoder_layers=w["l"], decoder_layers=w["l"], vocab_size=w["V"],
        max_position_embeddings=w["n"] - 2,
    )  # fmt: skip
    model = mbart(**w)
    assert model.storage().parameters == parameters(module)
    for batch, tokens in ((1, 7), (3, 20)):
        work = model.text(tokens, batch=batch, decode_steps=1)
        ours = model.cost("encode", work) + model.cost("decode", work)  # transformers makes the keys in its first step
        assert ours.tensor_core_flops == flops(lambda: module(ids(batch, tokens), decoder_input_ids=ids(batch, 1)))
        first = module(ids(batch, tokens), decoder_input_ids=ids(batch, 1))
        again = {"past_key_values": first.past_key_values, "encoder_outputs": (first.encoder_last_hidden_state,)}
        second = flops(lambda: module(decoder_input_ids=ids(batch, 1), **again))
        both = model.cost("decode", replace(work, decode_steps=2)).tensor_core_flops
        assert both - model.cost("decode", work).tensor_core_flops == second


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_cache_of_the_source_is_written_by_the_encoder_and_read_at_each_step(runtime):
    w, batch, source, steps = WIDTHS, 2, 20, 9
    model = mbart(**w)
    work = model.text(source, batch=batch, decode_steps=steps, runtime=runtime)
    position = 2 * w["l"] * batch * w["g"] * w["e"] * 2  # keys and values, layers, bf16
    encode, decode = model.cost("encode", work), model.cost("decode", work)
    assert encode.kv_cache_bytes == source * position
    assert decode.kv_cache_bytes == (source + steps) * position == model.request(work).kv_cache_bytes
    assert encode.kv_io_bytes == source * position or runtime == "eager"
    own = sum(range(1, steps + 1)) + steps  # read at each step, and one position written
    assert decode.kv_io_bytes == (steps * source + own) * position or runtime == "eager"
    assert set(model.breakdown("decode", work)) == {"embedding", "Side", "decoder", "head"}
