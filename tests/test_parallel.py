"""One of many devices: a graph whose axes are split computes what the whole one does, and costs what torch sees."""

from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from kinds import ONE_OF_EACH

import modelmeter
from modelmeter import cli
from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.graph.forms import ADD, MUL
from modelmeter.graph.ops import COLLECTIVES
from modelmeter.programs.counting import Counting
from modelmeter.runtimes.parallel import Parallel, data_parallel, tensor_parallel
from modelmeter.runtimes.splitter import share_reached
from modelmeter.sizes import evaluated

RUNTIMES = ("eager", "flash", "fused", "compulsory")
WHOLE = ("W_router", "_w:32", "W_a[", "W_qa[", "W_share")
"""Weights that no engine splits: they choose experts, or make what all heads share."""
DECODERS = [
    name
    for name in ONE_OF_EACH
    if name[0] != "_" and name not in ("deepseek_ocr_published", "phi_4", "glm_ocr", "qwen2_5_1_5b")
]


def graphs(model, **parallel):
    """The graphs of a model's stages on one device."""
    counting = Counting(parallel=parallel)
    return {stage.name: model._graph(stage, stage.whole, counting)[0] for stage in model.stages}


def sent(graph):
    """How often each kind of collective runs, by the layer that it is in."""
    found = Counter()
    for op in graph.ops:
        if op.kind in COLLECTIVES:
            found[op.kind, op.node.layer] += op.times
    return found


# What a split graph computes.


class Devices:
    """Runs a graph with numbers on several devices at once; weights and inputs are slices of whole ones."""

    def __init__(self, whole, split, sizes, devices):
        self.sizes, self.devices, self.given = sizes, devices, {}
        self.known = [{} for _ in range(devices)]
        pairs = iter(whole.ops)
        for op in split.ops:
            self.send(op) if op.kind in COLLECTIVES else self.run(op, next(pairs))
        self.last = split.ops[-1].writes[0].name

    def shape(self, n, axes):
        return tuple(evaluated([n.elements((axis,)) for axis in axes], self.sizes))

    def operand(self, r, t, own, whole, device):
        """A tensor on a device as an op has it: what was made there, or the device's slice of what is whole."""
        value = self.known[device].get(r.name)
        if value is None:
            rng = np.random.default_rng(len(r.name) + sum(map(ord, r.name)))
            value = self.given.setdefault(r.name, rng.normal(size=whole))
        if value.size == np.prod(own):
            return value.reshape(own)
        value, left, place = value.reshape(whole), self.devices, device
        for axis, (full, mine) in enumerate(zip(whole, own, strict=True)):
            left, start = left // (full // mine), place // (left // (full // mine)) * mine
            value, place = value.take(range(start, start + mine), axis), place % left if left > 1 else 0
        return value

    def send(self, op):
        name, source = op.reads[0].name, op.equation.factors[0]
        parts = [known[name] for known in self.known]
        axis = next((i for i, (s, t) in enumerate(zip(source.stored, source.touched, strict=True)) if s != t), None)
        made = sum(parts) if op.kind == "all_reduce" else np.concatenate(parts, axis)
        for known in self.known:
            known[name] = made

    def run(self, op, of):
        axes = [t.stored if t.role == "weight" else t.touched for t in op.equation.operands]
        for device, known in enumerate(self.known):
            values = [
                self.operand(r, t, self.shape(op.n, a), self.shape(of.n, a), device)
                for r, t, a in zip(op.reads, op.equation.operands, axes, strict=True)
            ]
            summed = {a for t in op.equation.factors for a in t.touched} - {*op.output.touched}
            partial = any(self.shape(op.n, [a]) != self.shape(of.n, [a]) for a in summed)
            known[op.writes[0].name] = self.made(op, values, adds=not partial or device == 0)

    def made(self, op, values, adds):
        letters = {axis: chr(97 + i) for i, axis in enumerate(dict.fromkeys(op.equation.loops + op.output.stored))}
        out = "".join(letters[axis] for axis in op.output.touched if axis in letters)
        many = len(op.equation.factors)
        spec = ",".join("".join(letters[axis] for axis in t.touched) for t in op.equation.factors)
        if op.kind == "lookup":  # every row of the table as often as it is asked for, here each once
            table = values[0].sum(0)
            return np.broadcast_to(table, evaluated([op.n.elements((a,)) for a in op.output.stored], self.sizes))
        if op.kind == "matmul" or (op.kind == "pointwise" and op.form is MUL):
            biases = sum(values[many:]) if adds else 0  # to partial sums the first device adds them
            return np.einsum(f"{spec}->{out}", *values[:many]) + biases
        if op.kind == "pointwise" and op.form is ADD:
            return sum(values)
        if op.kind == "copy":
            return values[0]
        if op.kind == "softmax":
            shares = np.exp(values[0] - values[0].max(-1, keepdims=True))
            return shares / shares.sum(-1, keepdims=True)
        if op.kind == "norm":
            return values[0] / np.sqrt((values[0] ** 2).mean(-1, keepdims=True)) * values[1]
        return np.tanh(np.einsum(f"{spec}->{out}", *values))  # any other form is not linear


ATTENTION = mm.CausalAttention(12, 2, 3, 4, rotation="none")
NORMED = mm.CausalAttention(12, 2, 2, 6, rotation="none", q_norm=mm.RMSNorm(6), k_norm=mm.RMSNorm(6))
AS_ONE = mm.CausalAttention(12, 2, 2, 6, rotation="none", q_norm=mm.RMSNorm(24), k_norm=mm.RMSNorm(12))
BLOCKS = {
    "block": (mm.ResidualBlock(ATTENTION, mm.GatedMLP(12, 18), mm.RMSNorm(12)), (2, 6)),
    "block of plain MLP, norms after": (
        mm.ResidualBlock(ATTENTION, mm.MLP(12, 6), mm.RMSNorm(12), norms="both"), (2, 6)),
    "parallel block": (mm.ResidualBlock(ATTENTION, mm.MLP(12, 6), mm.RMSNorm(12), parallel="one"), (2, 6)),
    "normed heads": (mm.ResidualBlock(NORMED, mm.GatedMLP(12, 8), mm.RMSNorm(12)), (2, 4)),
    "heads normed as one": (mm.ResidualBlock(AS_ONE, mm.GatedMLP(12, 8), mm.RMSNorm(12)), (2,)),
    "biases": (mm.CausalAttention(12, 2, 3, 4, rotation="none", bias="qkvo"), (2, 6)),
    "MLP alone": (mm.GatedMLP(12, 18, bias=True), (2, 3, 6, 9)),
    "head": (mm.LMHead(V=128, d=12, capped=True), (2, 4)),
    "decoder": (
        mm.CausalLM(mm.TokenEmbedding(384, 12, scaled=True), (
            mm.Repeat(mm.ResidualBlock(ATTENTION, mm.GatedMLP(12, 18), mm.RMSNorm(12)), 1),),
            mm.RMSNorm(12), mm.LMHead(384, 12), tied=True), (2, 6)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "devices"), [(name, n) for name, (_, many) in BLOCKS.items() for n in many])
def test_devices_together_compute_what_one_does(name, devices):
    """With numbers: products, sums over partial sums, gathered parts; what is not linear sees whole tensors alone."""
    layer = BLOCKS[name][0]
    graph, sizes = layer.graph(), {axis: {"b": 2, "s": 3, "t": 3}[axis] for axis in layer.sizes.split()}
    one = Devices(graph, graph, sizes, 1)
    split = tensor_parallel(devices)(graph)
    many = Devices(graph, split, sizes, devices)
    assert any(op.kind in COLLECTIVES for op in split.ops)
    wanted = one.known[0][one.last]
    for known in many.known:
        found = known[many.last]
        np.testing.assert_allclose(found[..., : wanted.shape[-1]], wanted, rtol=1e-9, atol=1e-9)


# Where collectives are.


def test_two_all_reduces_a_layer_come_out_of_the_equations():
    found = sent(graphs(modelmeter.load_model("llama_3_8b"), tensor=8)["prefill"])
    assert found == {
        ("all_reduce", "TokenEmbedding"): 1, ("all_reduce", "CausalAttention"): 32, ("all_reduce", "GatedMLP"): 32,
        ("all_gather", "LMHead"): 1,
    }  # fmt: skip


def test_a_mixture_is_added_up_once_with_its_shared_experts():
    found = sent(graphs(modelmeter.load_model("deepseek_v2_lite"), tensor=4, expert=2)["decode"])
    assert found.total() == 1 + 27 + 26 + 1 + 1
    assert {key: often for key, often in found.items() if "MoE" in key[1] or "Mix" in key[1] or "MLP" in key[1]} == {
        ("all_reduce", "MergedExpertsMoE"): 26,
        ("all_reduce", "GatedMLP"): 1,
    }


def test_parallel_parts_of_a_block_are_added_up_once():
    block = mm.ResidualBlock(ATTENTION, mm.MLP(12, 6), mm.RMSNorm(12), parallel="one")
    assert sent(tensor_parallel(2)(block.graph())) == {("all_reduce", "ResidualBlock"): 1}


def test_heads_that_are_normed_as_one_are_gathered():
    found = sent(tensor_parallel(2)(AS_ONE.graph()))
    assert found == {("all_gather", "CausalAttention"): 2, ("all_reduce", "CausalAttention"): 1}


def test_tokens_go_to_experts_and_back_where_these_are_of_other_groups():
    found = sent(graphs(modelmeter.load_model("mixtral_8x7b"), data=8, expert=8)["prefill"])
    assert found == {("all_to_all", "MergedExperts"): 64}


def test_the_vision_tower_is_whole_on_each_device_and_pages_are_shared():
    model = modelmeter.load_model("deepseek_ocr")
    work = {par: model.workload(grid=(2, 3), batch=4, parallel=dict([par])) for par in (("tensor", 2), ("data", 2))}
    plain, half = model.workload(grid=(2, 3), batch=4), model.workload(grid=(2, 3), batch=2)
    replicated = model.cost("vision", work["tensor", 2])
    assert {**vars(replicated), "basis": ""} == {**vars(model.cost("vision", plain)), "basis": ""}
    for stage in ("vision", "prefill", "decode"):
        found, wanted = model.cost(stage, work["data", 2]), model.cost(stage, half)
        assert {**vars(found), "basis": ""} == {**vars(wanted), "basis": ""}


# Laws of counts.


def test_one_device_is_the_whole_graph():
    graph = ATTENTION.graph()
    assert tensor_parallel(1)(graph) is graph and data_parallel(1)(graph) is graph
    assert Counting(parallel={"tensor": 1}) == Counting() and "parallel" not in Counting().basis


@pytest.mark.parametrize("name", DECODERS)
def test_devices_together_hold_and_do_what_one_does(name):
    """Op by op and weight by weight: half of it, or, what is not split, all of it; a vocabulary may be padded."""
    model = modelmeter.load_model(name)
    whole, own = graphs(model), graphs(model, tensor=2)
    for stage in ("prefill", "decode"):
        ops = [op for op in own[stage].ops if op.kind not in COLLECTIVES]
        assert len(ops) == len(whole[stage].ops)
        for op, of in zip(ops, whole[stage].ops, strict=True):
            padded = "V" in op.n.axes and op.n.axes["V"] * 2 != of.n.axes["V"]
            assert op.tensor in (of.tensor, of.tensor * Fraction(1, 2)) or padded, op.equation.text
            held = zip(op.reads, of.reads, strict=True)
            assert all(
                r.stored in (w.stored, w.stored * Fraction(1, 2)) or padded for r, w in held if w.role == "weight"
            )
            if op.kind == "matmul" and op.tensor == of.tensor and not padded:
                assert (
                    any(name in op.equation.text for name in WHOLE)
                    or "freq" in op.equation.text
                    or (op.n.axes.get("g") == 1 and "[b s g e]" in op.equation.text)
                )


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["llama_3_8b", "gemma_2_2b", "qwen3_30b_a3b"])
def test_work_and_cache_are_shared_by_all_devices_in_any_runtime(name, runtime):
    model = modelmeter.load_model(name)
    costs = [
        model.cost("decode", model.text(50, decode_steps=3, batch=4, runtime=runtime, parallel={"tensor": n}))
        for n in (1, 4)
    ]
    router = 2 * 48 * 4 * 3 * 2048 * 128 if name == "qwen3_30b_a3b" else 0
    assert costs[0].tensor_core_flops - router == 4 * (costs[1].tensor_core_flops - router)
    for count in ("kv_io_bytes", "kv_cache_bytes"):
        assert getattr(costs[0], count) == 4 * getattr(costs[1], count)
    assert costs[0].link_bytes == 0 < costs[1].link_bytes


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_collective_is_a_kernel_that_moves_its_message_once(runtime):
    program = mm.GatedMLP(8, 16).program(runtime=runtime, parallel={"tensor": 4})
    (kernel,) = (k for k in program.kernels(b=2, s=3) if k.collective)
    message = 2 * 3 * 8 * 2
    assert kernel.link_bytes == Fraction(2 * 3, 4) * message and kernel.devices == 4
    assert program(b=2, s=3)[""].link_bytes == kernel.link_bytes
    if runtime != "compulsory":  # there all is one kernel
        assert (sum(kernel.read_bytes.values()), sum(kernel.written_bytes.values())) == (message, message)
        assert kernel.flops == Fraction(3, 4) * message / 2  # each device adds up its share of the elements


def test_fewer_kv_heads_than_devices_are_on_several():
    layer = mm.CausalAttention(32, 2, 4, 4)
    two, eight = (layer.cost(b=1, s=5, t=5, parallel={"tensor": n}) for n in (2, 8))
    assert two.kv_cache_bytes == eight.kv_cache_bytes == 2 * 5 * 1 * 4 * 2
    assert two.parameters - eight.parameters == 2 * 32 * 3 * 4  # of four query heads one is left


def test_a_vocabulary_is_padded_to_whole_parts():
    for devices, rows in ((1, 1000), (2, 512), (3, 384), (64, 16)):
        assert mm.LMHead(V=1000, d=4).cost(b=1, s=1, parallel={"tensor": devices}).parameters == rows * 4


# Tokens and experts.


@pytest.mark.parametrize(("experts", "active", "devices"), [(8, 2, 4), (6, 3, 2), (8, 4, 8), (4, 4, 2), (9, 2, 3)])
def test_what_is_sent_to_experts_is_the_mean_over_all_choices(experts, active, devices):
    """Walks every choice of experts: devices that a token goes to, rows, additions there and at home."""
    owner = lambda expert: expert // (experts // devices)
    choices = list(combinations(range(experts), active))
    reached = Fraction(sum(len({*map(owner, choice)}) for choice in choices), len(choices))
    assert share_reached(experts, active, devices) * devices == reached
    d, b, s = 5, 2 * devices, 3
    layer = mm.Mixture(mm.Router(d, experts, active), f=7, shared=None)
    parallel = {"data": devices, "expert": devices}
    kernels = [k for k in layer.program(parallel=parallel).kernels(b=b, s=s) if k.path == "experts"]
    dispatch, combine = (k for k in kernels if k.collective)
    remote = Fraction(sum(len({*map(owner, choice)} - {0}) for choice in choices), len(choices))
    assert dispatch.link_bytes == combine.link_bytes == 2 * s * d * 2 * remote
    whole = [k for k in layer.program().kernels(b=b, s=s) if k.path == "experts"]
    done, wanted = (sum(sum(k.tensor_flops.values()) for k in found) for found in (kernels, whole))
    assert done * devices == wanted == 3 * 2 * b * s * active * d * 7
    read, wanted = (sum(k.read_bytes.get("weight", 0) for k in found) for found in (kernels, whole))
    assert read * devices == pytest.approx(wanted)
    home, there = kernels[-1], kernels[-3]
    assert home.flops == 2 * s * d * (reached - 1)
    assert devices * (there.flops + home.flops) == b * s * d * (active - 1)


@pytest.mark.parametrize(("parallel", "share"), [({"tensor": 4, "expert": 2}, 4), ({"tensor": 4, "expert": 4}, 4)])
def test_experts_of_one_group_are_shared_by_experts_and_by_width(parallel, share):
    layer = mm.Mixture(mm.Router(8, 8, 2), f=12, shared=mm.GatedMLP(8, 12))
    one, own = layer.cost(b=3, s=5), layer.cost(b=3, s=5, parallel=parallel)
    router = 2 * 15 * 8 * 8
    assert one.tensor_core_flops - router == share * (own.tensor_core_flops - router)
    assert one.parameters - 64 == share * (own.parameters - 64)


# Beside transformers' own tensor parallelism.

torch = pytest.importorskip("torch")


def test_a_traced_module_is_refused():
    from modelmeter.tracing.api import trace

    module = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)).to("meta")
    layer = trace(module, "x[b s 8]").layer()
    assert 2 * layer.cost(b=2, s=3, parallel={"data": 2}).tensor_core_flops == layer.cost(b=2, s=3).tensor_core_flops
    with pytest.raises(InputError, match=r"GELU: .* was traced, and cannot be split"):
        layer.cost(b=2, s=3, parallel={"tensor": 2})


from modelmeter.models.config_json import model_of  # noqa: E402

SMALL = {
    "vocab_size": 128, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 6, "sliding_window": None, "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
    "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "num_key_value_heads": 8,
    "topk_method": "greedy", "n_group": 1, "topk_group": 1, **EXPERTS,
}  # fmt: skip
TYPES = {
    "llama": {}, "llama with biases": {"attention_bias": True, "mlp_bias": True}, "mistral": {"sliding_window": 5},
    "mistral tied": {"tie_word_embeddings": True}, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {"sliding_window": 5},
    "ernie4_5": {"use_bias": True}, "gemma3_text": {"sliding_window": 5}, "granite": {}, "smollm3": {},
    "starcoder2": {"use_bias": True}, "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, **EXPERTS}, "deepseek_v2": LATENT,
}  # fmt: skip
CALLS = ((2, 9, 0), (2, 1, 9))


def beside(name, parallel, call, **changes):
    """The first rank of transformers' module and one device of ours."""
    from modelmeter.validate.parallel import ours, theirs

    fields = SMALL | {"model_type": name.partition(" ")[0]} | TYPES.get(name, {}) | changes
    decoder = model_of(fields, name).stages[0].layer
    return theirs(fields, Parallel(**parallel), *call), ours(fields, decoder, Parallel(**parallel), *call)


@pytest.mark.parametrize(("devices", "call"), [(2, CALLS[0]), (4, CALLS[1])])
@pytest.mark.parametrize("name", TYPES)
def test_a_rank_of_transformers_is_one_device(name, devices, call):
    """Parameters, FLOPs, cache, number and size of collectives; it adds up shared experts by themselves, we with
    the routed ones."""
    torchs, mine = beside(name, {"tensor": devices}, call)
    more = Counter({("all_reduce", call[0] * call[1] * 24): 3 if name == "deepseek_v2" else 0})
    assert torchs == mine._replace(sent=mine.sent + more)


@pytest.mark.parametrize("call", CALLS)
def test_a_rank_of_transformers_adds_up_parallel_parts_one_by_one(call):
    """Attention and MLP of phi stand side by side: their partial sums are added before anything must be sent."""
    changes = {
        "hidden_size": 64,
        "head_dim": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
    }
    torchs, mine = beside("phi", {"tensor": 4}, call, **changes)
    assert torchs == mine._replace(sent=mine.sent + Counter({("all_reduce", call[0] * call[1] * 64): 4}))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v2"])
def test_experts_of_a_rank_of_transformers_are_those_of_one_device(name, call):
    """It masks the rows of other ranks' experts, and multiplies them; we count those that are wanted."""
    torchs, mine = beside(name, {"tensor": 4, "expert": 4}, call)
    more = Counter({("all_reduce", call[0] * call[1] * 24): 3 if name == "deepseek_v2" else 0})
    width, mixtures = (20, 4) if name == "mixtral" else (8, 3 if name == "deepseek_v2" else 4)
    rows = call[0] * call[1] * 2
    masked = mixtures * (rows - rows // 4) * 3 * 2 * 24 * width
    assert torchs == mine._replace(sent=mine.sent + more, tensor_core_flops=mine.tensor_core_flops + masked)


# What cannot be.


@pytest.mark.parametrize(
    ("model", "parallel", "sentence"),
    [
        ("llama_3_8b", {"tensor": 3}, "parallel.tensor=3 does not divide g=8 x r=4 of CausalAttention; valid there: 1, 2, 4, 8"),
        ("phi_4", {"tensor": 4}, "parallel.tensor=4 does not divide g=10 x r=4"),
        ("llama_3_8b", {"expert": 2}, "parallel.expert=2 is no part of a group of parallel.tensor=1 devices, nor .*; valid: 1$"),
        ("mixtral_8x7b", {"tensor": 2, "data": 3, "expert": 3}, "parallel.expert=3 is no part of .*; valid: 1, 2, 6"),
        ("llama_3_8b", {"tensor": 2, "expert": 2}, "parallel.expert=2 is for routed experts, and there are none"),
        ("mixtral_8x7b", {"data": 16, "expert": 16}, "parallel.expert=16 does not divide the 8 experts of .*; valid: 1, 2, 4, 8"),
        ("llama_3_8b", {"tensor": 0}, "parallel.tensor must be a whole number of at least 1, not 0"),
        ("llama_3_8b", {"tensr": 2}, "unknown parallel key 'tensr', did you mean 'tensor'"),
        ("llama_3_8b", 4, "parallel must map tensor, expert and data to numbers of devices, not 4"),
        ("deepseek_ocr_published", {"tensor": 2}, "was changed by its model, and cannot be split"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(model, parallel, sentence):
    made = modelmeter.load_model(model)
    with pytest.raises(InputError, match=sentence):
        made.cost("prefill", made.text(10, parallel=parallel))


def test_other_limits_are_told():
    with pytest.raises(InputError, match="backward pass is counted on one device"):
        mm.GatedMLP(8, 16).backward_cost(b=1, s=1, parallel={"tensor": 2})
    model = modelmeter.load_model("llama_3_8b")
    with pytest.raises(InputError, match=r"llama.cpp's way to several devices is not modelled"):
        model.cost("prefill", model.text(10, runtime="llama_cpp", parallel={"tensor": 2}))
    with pytest.raises(InputError, match=r"OpenVINO's way to several devices is not modelled"):
        model.cost("prefill", model.text(10, runtime="openvino_stateful", parallel={"tensor": 2}))
    with pytest.raises(InputError, match="GatedDeltaNet cannot be split"):
        mm.GatedDeltaNet(d=8, g=2, r=2, e=4, o=3).cost(b=1, s=5, parallel={"tensor": 2})
    with pytest.raises(InputError, match="RMSNorm has nothing to split among devices"):
        mm.RMSNorm(8).cost(b=1, s=5, parallel={"tensor": 2})


def test_commands_answer_for_one_device(capsys):
    assert cli.main(["fits", "llama_3_1_70b", "device=a100_80gb"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert cli.main(["fits", "llama_3_1_70b", "device=a100_80gb", "parallel.tensor=4"]) == 0
    assert "llama_3_1_70b fits NVIDIA A100 80GB" in (told := capsys.readouterr().out) and "tensor parallel 4" in told
    assert cli.main(["cost", "mixtral_8x7b", "parallel.data=2", "parallel.expert=2"]) == 0
    assert " link\n" in capsys.readouterr().out
    assert cli.main(["cost", "mixtral_8x7b", "parallel.tensr=2"]) == 2
    assert "did you mean 'parallel.tensor'" in capsys.readouterr().err


def test_bases_tell_devices():
    model = modelmeter.load_model("mixtral_8x7b")
    work = model.text(10, parallel={"tensor": 2, "expert": 8, "data": 4})
    assert model.cost("prefill", work).basis.endswith("bf16, tensor parallel 2, expert parallel 8, data parallel 4")
