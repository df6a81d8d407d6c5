"""A placed model beside torch's own run of it: what each device holds and does, which storages go from one to the other.

transformers' forward runs as it is; at the cut a flag is turned, and each storage remembers under which device it was
made. What the second device reads of the first one's crosses.
"""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from operators import LiveStorages, Operators  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from modelmeter.models.config_json import model_of  # noqa: E402
from modelmeter.splits import split  # noqa: E402
from modelmeter.validate.counters import ScalarOperations, Watch, tensors_in  # noqa: E402
from modelmeter.validate.decoders import cache_of, module_of, runtime_of  # noqa: E402

SMALL = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 20, "num_hidden_layers": 4,
         "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_act": "silu"}  # fmt: skip
DECODERS = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
               "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16,
                    "hidden_activation": "gelu_pytorch_tanh"},
    "qwen3_moe": {"head_dim": 16, "num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 8,
                  "tie_word_embeddings": False},
}  # fmt: skip
KINDS = list(DECODERS)


def fields_of(kind):
    return SMALL | {"model_type": kind} | DECODERS[kind]


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"), torch.no_grad():
        yield


class Storages(Watch):
    """The device that made each storage, and those that an operator of another device read."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {w.untyped_storage()._cdata for w in weights}
        self.here, self.crossed, self.home, self.kept = 0, {}, {}, []

    def attention(self, reads, out):
        self._seen(reads, out)

    def _seen(self, given, result):
        for storage in (tensor.untyped_storage() for tensor in tensors_in(given)):
            if self.home.get(storage._cdata, self.here) != self.here:
                self.crossed[storage._cdata] = storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in tensors_in(result)):
            if storage._cdata not in self.weights:
                self.home.setdefault(storage._cdata, self.here)
                self.kept.append(storage)  # so that no address is used again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._seen((args, kwargs), result)
        return result


def run(module, at, mode, seen, cache, batch, tokens, past):
    """transformers' forward as it is, under a mode; what the mode has `seen` before layer `at` is told, and in all."""
    found = []

    def turn(*_):
        found.append(seen(mode))
        mode.here = 1

    hook = module.model.layers[at].register_forward_pre_hook(turn)
    ids, positions = (torch.zeros(batch, tokens, dtype=torch.long) for _ in range(2))
    with mode:
        if hasattr(mode, "_taint"):
            mode._taint((ids, positions))
        module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
    hook.remove()
    return found[0], seen(mode)


def cached(module, batch, past):
    cache = cache_of(module)
    if past:
        ids = torch.zeros(batch, past, dtype=torch.long)
        module(input_ids=ids, position_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def parts_of(kind, at, batch, tokens, runtime=None):
    model = model_of(fields_of(kind), kind)
    work = model.text(tokens, batch=batch, decode_steps=1, runtime=runtime or runtime_of(fields_of(kind)))
    return split(model, work, f"layers:{at}+{4 - at}")


SIZES = [(1, 9, 0), (2, 5, 0), (1, 1, 9), (3, 1, 4)]
CUTS = [(at, *size) for at, size in zip((1, 2, 3, 1), SIZES, strict=True)]
"""Every size and every cut once with each kind; what they change is not of each other."""
STAGE = {0: "prefill"}


@pytest.mark.parametrize(("at", "batch", "tokens", "past"), CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_device_does_what_torch_does_before_and_after_the_cut(kind, at, batch, tokens, past):
    found, module = parts_of(kind, at, batch, past or tokens), module_of(fields_of(kind))
    stage = "decode" if past else "prefill"
    ours = [part.cost(stage, found.works[name]) for name, part in found.parts.items()]
    size = (batch, tokens, past)
    for count, make, seen in (
        ("tensor_core_flops", lambda: FlopCounterMode(display=False), lambda mode: mode.get_total_flops()),
        ("cuda_core_flops", lambda: ScalarOperations(()), lambda mode: mode.flops),
    ):
        before, whole = run(module, at, make(), seen, cached(module, batch, past), *size)
        assert [getattr(cost, count) for cost in ours] == [before, whole - before], count
    cache = cached(module, batch, past)
    storages = Storages([*module.parameters(), *module.buffers()])
    _, crossed = run(module, at, storages, lambda mode: list(mode.crossed.values()), cache, *size)
    crossing = [c.bytes for c in found.crossings if c.stage == stage and c.to == "device 1"]
    assert sorted(crossing) == sorted(crossed) and max(crossed) == batch * tokens * 48 * 2
    held = [sum(t.nbytes for layer in some for t in (layer.keys, layer.values))
            for some in (cache.layers[:at], cache.layers[at:])]  # fmt: skip
    windows = "gemma" in kind  # transformers keeps a window less the token that comes next
    assert windows or [cost.kv_cache_bytes for cost in ours] == held


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_device_holds_the_parameters_of_its_modules(kind, at):
    found, module = parts_of(kind, at, 1, 5), module_of(fields_of(kind))
    inside = module.model
    groups = [[inside.embed_tokens, *inside.layers[:at]], [*inside.layers[at:], inside.norm, module.lm_head]]
    for part, group in zip(found.parts.values(), groups, strict=True):
        numbers = {id(p): p.numel() for m in group for p in m.parameters()}
        assert part.storage().parameters == sum(numbers.values())
    whole = found.model.storage().parameters
    both = sum(part.storage().parameters for part in found.parts.values())
    tied = inside.embed_tokens.weight is module.lm_head.weight
    assert both - whole == (inside.embed_tokens.weight.numel() if tied else 0)


class LiveThere(LiveStorages):
    """The most that is alive at once of what each device made or received."""

    def __init__(self, given, there, weights):
        self.here, self.home, self.peaks = 0, {}, [0, 0]
        super().__init__(given, weights)
        self.here = 1
        self._track(there)
        self.here = 0

    def _track(self, result):
        super()._track(result)
        self.home = {key: self.home.get(key, self.here) for key in self._live}
        for here in (0, 1):
            alive = sum(size for key, (_, size, _) in self._live.items() if self.home[key] == here)
            self.peaks[here] = max(self.peaks[here], alive)


def run_eagerly(kind, at, batch, tokens, past, make, turned=lambda mode: None):
    """transformers' layers as eager code under the mode that `make` makes; what crosses is copied at the cut.

    Each device has a mask, as the host gives it.
    """
    module, received = module_of(fields_of(kind), "eager"), {}
    masks = [torch.empty(batch, 1, tokens, tokens + past, dtype=torch.bfloat16) for _ in range(2)]
    x, positions = torch.empty(batch, tokens, 48, dtype=torch.bfloat16), torch.zeros(batch, tokens, dtype=torch.long)
    cache = cached(module, batch, past)
    kept = [(layer.keys, layer.values) for layer in cache.layers if past]
    mode = make([x, masks[0], positions, *kept[:at]], [masks[1], *kept[at:]], [*module.parameters(), *module.buffers()])
    del kept

    def turn(number, args, kwargs):
        if number == at:
            turned(mode)
            mode.here = 1
            args = tuple(t.clone() for t in args)
            received["tables"] = tuple(t.clone() for t in kwargs["position_embeddings"])
        kwargs |= {"attention_mask": masks[number >= at]} | (
            {"position_embeddings": received["tables"]} if received else {}
        )
        return args, kwargs

    for number, layer in enumerate(module.model.layers):
        layer.register_forward_pre_hook(lambda _, a, k, number=number: turn(number, a, k), with_kwargs=True)
    with mode:
        module(inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True)
    return mode


EAGER = ["llama", "qwen2", "qwen3"]


@pytest.mark.parametrize(("at", "batch", "tokens", "past"), CUTS)
@pytest.mark.parametrize("kind", EAGER)
def test_each_device_runs_the_kernels_that_torch_runs_there_and_copies_what_crosses(kind, at, batch, tokens, past):
    found, before = parts_of(kind, at, batch, past or tokens, "eager"), []
    make = lambda given, there, weights: Operators((given, there))
    mode = run_eagerly(kind, at, batch, tokens, past, make, lambda mode: before.append(len(mode.seen)))
    stage = "decode" if past else "prefill"
    for name, side in (("device 0", mode.seen[: before[0]]), ("device 1", mode.seen[before[0] :])):
        ours = Counter(
            (c.bytes // c.runs,) * 2 for c in found.crossings if (c.to, c.stage) == (name, stage) and "[" in c.tensor
        )
        for kernel in found.parts[name].kernels(stage, found.works[name]):
            if kernel.runs and set(kernel.read_bytes) - {"weight"}:
                ours[sum(kernel.read_bytes.values()), sum(kernel.written_bytes.values())] += int(kernel.runs)
        assert ours == Counter((kernel.bytes_read, kernel.bytes_written) for kernel in side if not kernel.constant)


@pytest.mark.parametrize(("batch", "tokens", "past"), SIZES)
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # norms of queries and keys hold more here than in torch
def test_each_devices_peak_is_what_torch_has_alive_there(kind, at, batch, tokens, past):
    found = parts_of(kind, at, batch, past or tokens, "eager")
    mode = run_eagerly(kind, at, batch, tokens, past, LiveThere)
    costs = [part.cost("decode" if past else "prefill", found.works[name]) for name, part in found.parts.items()]
    first, second = (cost.peak_activation_bytes + cost.kv_cache_bytes for cost in costs)
    frequencies = 4 * found.model.stages[0].layer.rotary.e // 2  # ours are an input of the first, theirs a buffer
    assert [first - frequencies, second] == mode.peaks
