"""Tracing: a torch module run once with symbolic sizes gives formulas that torch's own counter confirms elsewhere."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.sam.modeling_sam import SamVisionEncoder

import modelmeter
from modelmeter import cli, layers
from modelmeter.errors import InputError
from modelmeter.models.trace_json import checked_trace, size_of
from modelmeter.sizes import ceil_div, floor_div, minimum, ratio, substituted, symbol
from modelmeter.tracing.capture import Session
from modelmeter.tracing.known import Known
from modelmeter.tracing.records import Run
from modelmeter.tracing.reference import decode_flops, forward_flops, prefill_flops
from modelmeter.tracing.repeats import folded
from modelmeter.tracing.written import expression
from modelmeter.validate import symbolic

transformers.logging.set_verbosity_error()
NUMBERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "vocab_size": 50}  # fmt: skip
KINDS = {
    "Llama": {}, "Mixtral": {"num_hidden_layers": 1}, "Gemma3": {"head_dim": 8, "sliding_window": 32, "sliding_window_pattern": 2},
}  # fmt: skip
SAID = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None,
        "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": False}  # fmt: skip
"""What released files have and a configuration of transformers leaves out."""
B, S, T = map(symbol, "bst")


def made(kind, *arguments):
    with torch.device("meta"):
        return kind(*arguments).to(torch.bfloat16)


def language_model(kind):
    name = {"Gemma3": "Gemma3Text"}.get(kind, kind)
    config = getattr(transformers, f"{name}Config")(**NUMBERS | KINDS[kind])
    with torch.device("meta"):
        return getattr(transformers, f"{kind}ForCausalLM")._from_config(config, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def traced():
    """Language models by name, each traced once, beside its module."""
    known = {}

    def of(kind):
        if kind not in known:
            module = language_model(kind)
            known[kind] = (modelmeter.trace(module), module)
        return known[kind]

    return of


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("b", "s"), [(4, 20), (1, 1)])
def test_a_traced_language_model_does_the_work_that_torch_counts_at_other_sizes(traced, kind, b, s):
    model, module = traced(kind)
    prefill = model.layer("prefill").cost(b=b, s=s)
    assert prefill.tensor_core_flops == prefill_flops(module, b, s)
    assert model.layer("decode").cost(b=b, t=s + 1).tensor_core_flops == decode_flops(module, b, s + 1)
    assert prefill.parameters == parameters(module) == model.storage().parameters


def test_decode_is_the_sum_of_its_steps(traced):
    model, module = traced("Llama")
    cost = model.cost("decode", model.text(9, batch=2, decode_steps=3))
    assert cost.tensor_core_flops == sum(decode_flops(module, 2, t) for t in (10, 11, 12))
    width = NUMBERS["hidden_size"] // NUMBERS["num_attention_heads"]
    assert cost.kv_cache_bytes == 2 * 2 * 2 * NUMBERS["num_key_value_heads"] * width * 2 * 12


def test_a_window_is_a_bound_of_the_domain(traced):
    model, _ = traced("Gemma3")
    with pytest.raises(InputError, match=r"holds only where .*s=100"):
        model.cost("prefill", model.text(100))
    with pytest.raises(InputError, match="holds only where"):
        model.cost("decode", model.text(20, decode_steps=100))


def test_identical_layers_are_one(traced):
    model, _ = traced("Llama")
    paths = {path for path, *_ in model.layer("decode").piece["modules"]}
    assert "model.layers.0-1.mlp.up_proj" in paths
    assert not any(".layers.1." in path for path in paths)


@pytest.mark.parametrize("runtime", ["eager", "flash", "fused", "compulsory"])
def test_every_runtime_takes_a_trace(traced, runtime):
    model, _ = traced("Mixtral")
    work = model.text(20, batch=2, runtime=runtime, logits="last")
    last, whole = (model.cost("prefill", w) for w in (work, model.text(20, batch=2, runtime=runtime)))
    width, entries = NUMBERS["hidden_size"], NUMBERS["vocab_size"]
    assert whole.tensor_core_flops - last.tensor_core_flops == 2 * 2 * 19 * width * entries
    assert sum(part.flops for part in model.breakdown("prefill", work, 4).values()) == last.flops
    assert model.kernels("prefill", work)


def test_experts_are_stored_whole_and_read_as_the_tokens_reach_them(traced):
    model, _ = traced("Mixtral")
    one, many = (model.layer("prefill").cost(b=1, s=s, runtime="flash") for s in (1, 1000))
    experts = 8 * 3 * NUMBERS["hidden_size"] * NUMBERS["intermediate_size"] * 2
    rows = 999 * NUMBERS["hidden_size"] * 2
    assert many.weight_io_bytes - one.weight_io_bytes == pytest.approx(experts * 6 / 8 + rows, rel=1e-9)


VISION = {
    "sam": (SamVisionEncoder, transformers.SamVisionConfig(num_hidden_layers=2, global_attn_indexes=[1], hidden_size=32,
            num_attention_heads=2, mlp_dim=48, output_channels=16, image_size=112, window_size=3), 112),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=48,
             num_hidden_layers=2, num_attention_heads=2, image_size=64), 64),
    "vit": (transformers.ViTModel, transformers.ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, image_size=64), 64),
}  # fmt: skip


@pytest.mark.parametrize("kind", VISION)
def test_a_traced_vision_tower_does_the_work_that_torch_counts_at_other_sizes(kind):
    tower, config, side = VISION[kind]
    with torch.device("meta"):
        module = tower._from_config(config, dtype=torch.bfloat16)
    axes = f"x[b 3 {side} {side}]"
    layer = modelmeter.trace(module, axes).layer()
    for b in (1, 4):
        assert layer.cost(b=b).tensor_core_flops == forward_flops(module, axes, b=b)
    assert layer.cost(b=1).parameters == parameters(module)


LLAMA = transformers.LlamaConfig(**NUMBERS, attn_implementation="sdpa")
CLIP = transformers.CLIPVisionConfig(
    hidden_size=32, intermediate_size=48, num_attention_heads=2, attn_implementation="sdpa"
)


def attention(module, x, cos, sin):
    return module(x, position_embeddings=(cos, sin), attention_mask=None)


WORK = ("tensor_core_flops", "cuda_core_flops", "parameters")
ALL = (*WORK, "weight_io_bytes", "activation_io_bytes", "peak_activation_bytes")
IDENTITIES = {
    "GatedMLP": (lambda: made(LlamaMLP, LLAMA), ["x[b s 32]"], None, layers.GatedMLP(32, 48), ALL, "flash"),
    "RMSNorm": (lambda: made(LlamaRMSNorm, 32), ["x[b s 32]"], None, layers.RMSNorm(32), ALL, "eager"),
    "LlamaAttention": (lambda: made(LlamaAttention, LLAMA, 0), ["x[b s 32]", "cos[b s 8]", "sin[b s 8]"], attention,
                       layers.LlamaAttention(32, 2, 2, 8), (*WORK, "weight_io_bytes"), "flash"),
    "CLIP block": (lambda: made(CLIPEncoderLayer, CLIP), ["x[b s 32]"], lambda m, x: m(x, attention_mask=None),
                   layers.ResidualBlock(layers.SelfAttention(32, 2, 16), layers.NoTPFeedForward(32, 48),
                                        layers.LayerNorm(32)), (*WORK, "weight_io_bytes"), "flash"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
def test_our_layer_less_the_traced_module_is_zero_for_all_sizes(name):
    make, inputs, method, ours, counts, runtime = IDENTITIES[name]
    theirs = modelmeter.trace(make(), *inputs, method=method).layer().program(runtime=runtime).costs[""]
    cost = ours.program(runtime=runtime).costs[""]
    for count in counts:
        assert substituted(getattr(cost, count), "t", S) - getattr(theirs, count) == 0, count


def test_a_decoder_of_a_config_json_is_the_traced_module_for_all_sizes(traced, tmp_path, capsys, monkeypatch):
    model, module = traced("Mixtral")
    monkeypatch.setattr(symbolic, "trace", lambda *_, **__: model)
    monkeypatch.setattr(symbolic, "module_of", lambda fields: module)
    (tmp_path / "config.json").write_text(json.dumps(module.config.to_diff_dict() | NUMBERS | KINDS["Mixtral"] | SAID))
    assert cli.main(["validate", str(tmp_path / "config.json"), "--symbolic"]) == 0
    assert "2 identities, 0 not traced" in capsys.readouterr().out
    quantities = ("tensor_core_flops", "parameters", "kernel_io_bytes", "kv_cache_bytes")
    for stage in symbolic.identities(str(tmp_path / "config.json")):
        assert stage.proven and all(stage.residuals[quantity] == 0 for quantity in quantities)


class Net(torch.nn.Module):
    """Convolutions, the middle ones alike."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, stride=2)
        self.middle = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)))
        self.last = torch.nn.Linear(8, 5)
        self.never = torch.nn.Linear(7, 7)

    def forward(self, x):
        return self.last(self.middle(torch.relu(self.first(x))).mean((2, 3)))


class Picky(torch.nn.Module):
    """Looks at values."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x):
        y = self.inner(x)
        return y if y.sum() > 0 else -y


class Fixed(torch.nn.Module):
    """Makes a number of a size."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]) * 4)


class Doubled(torch.nn.Module):
    """Does more for long inputs."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(self.inner(x)) if x.shape[0] > 16 else self.inner(x)


def test_a_net_of_ones_own_holds_at_any_height_and_width(tmp_path):
    axes = "x[b 3 u v]"
    layer = modelmeter.trace(Net(), axes).layer()
    for sizes in ({"b": 2, "u": 30, "v": 47}, {"b": 1, "u": 224, "v": 224}):
        assert layer.cost(**sizes).tensor_core_flops == forward_flops(Net().to("meta"), axes, **sizes)
    assert layer.cost(b=1, u=9, v=9).parameters == parameters(Net())
    backward = layer.backward_cost(b=1, u=9, v=9)
    assert backward.tensor_core_flops == 2 * layer.cost(b=1, u=9, v=9).tensor_core_flops


def test_what_cannot_be_traced_is_told_with_module_and_operator():
    with pytest.raises(InputError, match="Picky: operator 'item' depends on the values of tensors"):
        modelmeter.trace(Picky(), "x[b 4]")
    with pytest.raises(InputError, match=r"Net.first: cannot be run on inputs of these sizes"):
        modelmeter.trace(Net(), "x[b 4]")
    with pytest.raises(InputError, match="an input is NAME"):
        modelmeter.trace(Net(), "x=4")
    with pytest.raises(InputError, match="no causal language model"):
        modelmeter.trace(Net())


def test_outside_its_domain_a_formula_gives_no_number():
    layer = modelmeter.trace(Doubled(), "x[b 4]", hints={"b": 5}).layer()
    assert layer.cost(b=16).tensor_core_flops == 2 * 16 * 16
    with pytest.raises(InputError, match="holds only where b <= 16, not b=17"):
        layer.cost(b=17)
    fixed = modelmeter.trace(Fixed(), "x[b 4]", hints={"b": 5}).layer()
    assert fixed.cost(b=5).tensor_core_flops == 0
    with pytest.raises(InputError, match="holds only where b == 5"):
        fixed.cost(b=6)


def test_expressions_come_back_from_lists():
    sizes = [B, 3, B * S + 2, ratio(B, 3), floor_div(S + 1, 2) * B, ceil_div(S, 7), minimum(B, S) * B * B, ratio(7, 2)]
    for size in sizes:
        assert size_of(json.loads(json.dumps(expression(size))), ["b", "s"]) == size


BROKEN = [
    (["version"], 2, "version must be 1"), (["name"], 3, "name of the trace must be of type str"),
    (["stages", 0, "pieces", 0, "sizes", 0], ["__import__", "os"], "unknown function of sizes"),
    (["stages", 0, "pieces", 0, "sizes", 0], "c", "unknown size 'c'"),
    (["stages", 0, "pieces", 0, "sizes", 0], ["+", 1, None], "is no size"),
    (["stages", 0, "sizes", 0], "import os", "plain name"), (["stages", 0, "sizes", 0], "lambda", "plain name"),
    (["stages", 0, "pieces", 0, "ops", 0, "kind"], "exec", "unknown kind"),
    (["stages", 0, "pieces", 0, "ops", 0, "module"], 10**6, "not in its table"),
    (["stages", 0, "pieces", 0, "ops", 0, "equation"], "os.system('x')", "equation"),
    (["stages", 0, "pieces", 0, "tensors", 0, 1], "secret", "unknown role"),
    (["stages", 0, "more"], 1, "unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "told"), BROKEN)
def test_a_trace_that_was_tampered_with_is_refused(place, value, told):
    content = json.loads(json.dumps(modelmeter.trace(Doubled(), "x[b 4]").content))
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(InputError, match=told):
        checked_trace(content)


def test_a_trace_is_read_and_counted_without_torch(traced, tmp_path):
    model, _ = traced("Llama")
    modelmeter.save(model, tmp_path / "llama.json")
    code = (
        "import sys, modelmeter; m = modelmeter.load_model('llama.json'); "
        "print(m.cost('prefill', m.text(9, batch=4)).flops, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(model.cost("prefill", model.text(9, batch=4)).flops), "False"]


def test_the_commands_trace_and_count(traced, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_trace.py").write_text(
        "import torch\nclass Net(torch.nn.Sequential):\n    def __init__(self):\n        super().__init__(torch.nn.Linear(4, 8))\n"
    )
    assert cli.main(["trace", "mine_to_trace:Net", "--input", "x[b n 4]", "-o", "net.json"]) == 0
    assert "forward: holds where b >= 1 and n >= 1" in capsys.readouterr().out
    assert cli.main(["cost", "net.json", "b=3", "n=1000"]) == 0
    assert "192 kFLOP" in capsys.readouterr().out
    assert cli.main(["cost", "net.json", "b=3"]) == 2
    assert "size 'n' is not given" in capsys.readouterr().err
    modelmeter.save(traced("Llama")[0], "llama.json")
    assert cli.main(["cost", "llama.json", "batch=4", "prompt_tokens=20", "depth=4"]) == 0
    assert "model.layers.0-1.self_attn" in capsys.readouterr().out
    assert cli.main(["trace", "transformers:LlamaForCausalLM", "nowhere.json", "-o", "x.json"]) == 2
    assert "cannot read 'nowhere.json'" in capsys.readouterr().err
    assert cli.main(["trace", "no.such:Net", "-o", "x.json"]) == 2
    assert "no.such:Net: cannot be imported" in capsys.readouterr().err


def test_what_tracing_relies_on_of_torch():
    """Sizes are distinct symbols of their own, guards are recorded, what is fixed is seen."""
    session = Session(torch.device("meta"), torch.float32)
    a, b = session.size("a", 5), session.size("b", 5)
    assert session.tensor((a, b), torch.float32).shape == (a, b)
    assert session.reader.size(a * b + a) == symbol("a") * symbol("b") + symbol("a")
    assert bool(a < 7)
    assert [c.text for c in session.conditions() if not c.least] == ["a < 7"]
    assert int(b) == 5
    assert session.fixed() == {"b": 5}


def test_an_operator_that_is_remembered_makes_what_torch_makes():
    """Sizes, strides and formats, and a storage that is the first argument's for a view, a new one else."""
    session, aten = Session(torch.device("meta"), torch.float32), torch.ops.aten
    known, shape = Known(session.fakes), [session.size("a", 5), 7, session.size("b", 11)]
    x, y = (session.tensor(shape, torch.float32) for _ in range(2))
    calls = {
        aten.add.Tensor: (x, y), aten.permute.default: (x, [2, 0, 1]), aten.cat.default: ([x, y], 1),
        aten.split.Tensor: (x, 3, 1), aten.sum.dim_IntList: (x, [2]), aten.topk.default: (x, 2, 1),
        aten._to_copy.default: (x,), aten.add_.Tensor: (x, y),
    }  # fmt: skip
    for func, args in calls.items():
        with session.mode:
            runs = [known.run(func, args, {}, known.key(func, args, {})) for _ in range(2)]
        for first, again in zip(*(run if isinstance(run, (list, tuple)) else [run] for run in runs), strict=True):
            assert (again.shape, again.stride(), again.dtype) == (first.shape, first.stride(), first.dtype)
            stores = [t.untyped_storage()._cdata for t in (x, first, again)]
            assert (stores[0] == stores[2]) == (stores[0] == stores[1]) == (stores[1] == stores[2])


def test_a_run_without_lists_stays_as_it_is():
    run = Run(("b",), [], [], [], {}, [], {})
    assert folded(run) is run
