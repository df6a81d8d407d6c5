"""A decoder from its numbers: which layers stand where, and what each has.

The numbers are those of `decoders.yaml`, read from the fields of a config.json by `config_json.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import NamedTuple, final

from modelmeter import layers as nn
from modelmeter.errors import InputError, choose
from modelmeter.graph.ops import Op
from modelmeter.graph.place import Sizes
from modelmeter.layers.base import BaseLayer, require_divisible
from modelmeter.layers.norm import Norm

NORMS: dict[str, type[Norm]] = {
    "rms": nn.RMSNorm, "wide": nn.WideRMSNorm, "layer": nn.LayerNorm, "centered": nn.CenteredNorm,
}  # fmt: skip
MOST_LAYERS = 10_000
TYPES = ("full_attention", "sliding_attention")


class Kind(NamedTuple):
    """What tells a layer from others: whether it has the window, rotates its heads, and has a dense MLP."""

    near: bool
    rotates: bool
    dense: bool


Rule = Callable[[SimpleNamespace, int], bool]
WINDOWS: dict[str, Rule] = {
    "none": lambda v, i: False,
    "all": lambda v, i: True,
    "last": lambda v, i: i >= v.first_window,
    "alternate": lambda v, i: i % 2 == 0,
    "first_alternate": lambda v, i: i % 2 == 0 and i < v.first_window,
    "pattern": lambda v, i: (i + 1) % v.pattern != 0,
    "unrotated": lambda v, i: not _rotates(v, i),
}
"""Which layers have the window, where `layer_types` does not say it."""
DENSE: dict[str, Rule] = {
    "all": lambda v, i: True,
    "none": lambda v, i: False,
    "first": lambda v, i: i < v.dense_layers,
    "steps": lambda v, i: i in (v.dense_list or ()) or (i + 1) % v.sparse_step != 0,
    "range": lambda v, i: (i + 1) % v.sparse_step != 0 or i < v.dense_layers or -1 < v.last_mixture < i,
}
"""Which layers have a dense MLP."""


def _rotates(v: SimpleNamespace, index: int) -> bool:
    if v.unrotated is not None:
        return bool(v.unrotated[index])
    return v.unrotated_step is None or (index + 1) % v.unrotated_step != 0


def _near(v: SimpleNamespace) -> list[bool]:
    """The layers that have the window."""
    there = v.window is not None and v.use_window
    if v.window == 1:
        raise InputError("sliding_window must be at least 2, as a query sees itself within it")
    if there and v.windows in ("last", "first_alternate") and v.layer_types is None and v.first_window is None:
        raise InputError("max_window_layers is missing, which says where the window begins")
    ruled = [bool(there) and WINDOWS[v.windows](v, i) for i in range(v.layers)]
    if v.layer_types is None:
        return ruled
    for kind in v.layer_types:
        choose("entry of layer_types", str(kind), TYPES)
    said = [kind == TYPES[1] for kind in v.layer_types]
    if len(said) != v.layers:
        raise InputError(f"layer_types has {len(said)} entries, but num_hidden_layers is {v.layers}")
    if any(said) and v.window is None:
        raise InputError("layer_types has sliding_attention, but there is no sliding_window")
    if any(said) and not v.use_window and v.windows in ("last", "first_alternate"):
        raise InputError("layer_types has sliding_attention, but use_sliding_window is false")
    if v.windows in ("none", "all") and said != ruled:
        raise InputError(f"layer_types contradicts the windows of this type, which are those of {v.windows} its layers")
    return said


@final
@dataclass(frozen=True)
class Apart(nn.Repeat):
    """Layers of one kind that stand at `places` among all layers of a decoder, others between them.

    y = layer(...layer(x)); what is counted is that of Repeat. Vendor: the layer_types of a Gemma3Config in
    transformers. Axes: those of the layer.

    >>> Apart(nn.RMSNorm(4), 2, (0, 2)).cost(b=1, s=3) == nn.Repeat(nn.RMSNorm(4), 2).cost(b=1, s=3)
    True
    """

    places: tuple[int, ...] = ()

    def ops(self, n: Sizes) -> Iterator[Op]:
        n.root.places[f"{n.node.path}.{self.scope}"] = self.places
        yield from super().ops(n)


def in_turn(decoder: BaseLayer) -> BaseLayer:
    """A decoder whose layers stand in the order in which they run: of layers apart each run of a kind by itself."""
    if not isinstance(decoder, nn.CausalLM) or not any(isinstance(layer, Apart) for layer in decoder.layers):
        return decoder
    turns = sorted(
        ((i, layer) for layer in decoder.layers if isinstance(layer, Apart) for i in layer.places), key=itemgetter(0)
    )
    runs = ((kind, len(list(run))) for kind, run in groupby(layer for _, layer in turns))
    return replace(decoder, layers=tuple(nn.Repeat(kind.layer, many) for kind, many in runs))


def kinds(v: SimpleNamespace) -> dict[Kind, tuple[int, ...]]:
    """Where the layers of each kind stand; their order changes no count, but how a policy stores them."""
    if v.layers > MOST_LAYERS:
        raise InputError(f"num_hidden_layers must be at most {MOST_LAYERS}, not {v.layers}")
    if v.unrotated is not None and len(v.unrotated) != v.layers:
        raise InputError(f"no_rope_layers has {len(v.unrotated)} entries, but num_hidden_layers is {v.layers}")
    if v.dense == "first" and v.dense_layers > v.layers:
        raise InputError(f"first_k_dense_replace {v.dense_layers} exceeds num_hidden_layers {v.layers}")
    dense = DENSE["all" if v.experts is None else v.dense]
    found: dict[Kind, tuple[int, ...]] = {}
    for i, near in enumerate(_near(v)):
        kind = Kind(near, _rotates(v, i), dense(v, i))
        found[kind] = (*found.get(kind, ()), i)
    return found


def _turned(v: SimpleNamespace, width: int) -> int:
    """Elements of a head that are rotated."""
    turned = v.rotated or int(width * v.partial)
    if turned % 2 or not 2 <= turned <= width:
        raise InputError(f"{turned} rotated elements of a head of {width} are no pairs of it")
    return turned


def _attention(v: SimpleNamespace, kind: Kind, width: int) -> BaseLayer:
    turned = _turned(v, v.rotated or width)
    if v.latent is not None:
        direct = v.rotation if v.interleaved else "half"
        return nn.LatentAttention(
            v.hidden, v.heads, v.own, turned, v.value, v.latent, v.low, v.out_bias, rotation=direct
        )
    require_divisible("configuration", "num_attention_heads", v.heads, "num_key_value_heads", v.kv_heads)
    norms: list[Norm | None] = [None, None]
    if v.qk_norm:
        heads = (v.heads, v.kv_heads)
        whole = v.qk_norm == "whole" or v.norm == "centered"
        widths = [many * width if whole else width for many in heads]
        parts = [{"heads": many} if v.norm == "centered" else {} for many in heads]
        norms = [NORMS[v.norm](d, **part) for d, part in zip(widths, parts, strict=True)]
    bias = "qkv" * v.qkv_bias + "o" * v.out_bias
    whole = turned == width and v.rotation != "part"
    return nn.CausalAttention(
        v.hidden, v.kv_heads, v.heads // v.kv_heads, width, window=v.window if kind.near else None,
        turned=None if whole else turned, rotation=v.rotation if kind.rotates else "none", bias=bias,
        one_matrix=v.one_matrix, q_norm=norms[0], k_norm=norms[1], capped=v.capped is not None, sinks=v.sinks,
    )  # fmt: skip


def _mlp(v: SimpleNamespace, kind: Kind) -> BaseLayer:
    if not v.gated:
        return nn.MLP(v.hidden, v.mlp, v.activation, v.mlp_bias)
    if kind.dense:
        return nn.GatedMLP(v.hidden, v.mlp, v.activation, v.mlp_bias, v.one_matrix or v.one_matrix_mlp)
    if v.active is None or v.expert_mlp is None:
        raise InputError("a mixture needs the number of experts a token and their width, not null")
    grouped = v.groups is not None and v.method != "greedy"
    router = nn.Router(
        v.hidden, v.experts, v.active, v.scores, v.wide_router, v.router_bias, v.correction,
        v.groups if grouped else None, v.kept_groups if grouped else None, v.best if grouped else None,
        v.renormalised, v.guarded, v.scaled_router, v.narrow_router,
    )  # fmt: skip
    if v.shared is not None and v.shared < v.least_shared:
        raise InputError(f"n_shared_experts must be at least {v.least_shared}, not {v.shared}")
    width = v.shared_mlp or (v.shared or 0) * v.expert_mlp
    shared = nn.GatedMLP(v.hidden, width, v.activation, v.mlp_bias) if width else None
    return nn.MergedExpertsMoE(router, v.expert_mlp, shared, v.activation, v.expert_bias, v.weighted_shared)


def _table(v: SimpleNamespace, turned: int) -> nn.RotaryEmbedding:
    if v.sections is not None and 2 * sum(v.sections) != turned:
        raise InputError(
            f"mrope_section {v.sections} must add up to {turned // 2}, the pairs of a head that are rotated"
        )
    return nn.RotaryEmbedding(turned, v.table if v.sections is None else "sections")


def causal_lm(v: SimpleNamespace) -> nn.CausalLM:
    """The decoder of these numbers. Raises InputError where they contradict each other."""
    if v.head_width is None and v.latent is None:
        require_divisible("configuration", "hidden_size", v.hidden, "num_attention_heads", v.heads)
    width = v.head_width or v.hidden // v.heads
    norm, parallel = NORMS[v.norm](v.hidden), v.parallel
    if v.parallel_residual is not None:
        parallel = "two" if v.parallel_residual else "none"
    layers, there = [], kinds(v)
    apart = sorted(chain(*there.values())) != list(chain(*there.values()))
    for kind, places in there.items():
        attention, mlp = _attention(v, kind, width), _mlp(v, kind)
        block = nn.ResidualBlock(attention, mlp, norm, norms=v.norms, parallel=parallel, scaled=v.scaled_parts)
        layers.append(Apart(block, len(places), places) if apart else nn.Repeat(block, len(places)))
    table = _table(v, _turned(v, v.rotated or width))
    both = len({kind.near for kind in there}) == 2
    return nn.CausalLM(
        nn.TokenEmbedding(v.vocabulary, v.hidden, v.scaled_embedding), tuple(layers), norm,
        nn.LMHead(v.vocabulary, v.hidden, v.head_bias, v.scaled_logits, v.capped_logits is not None),
        table, v.tied, v.positions, local_rotary=table if v.local_rotary and both else None, vendor=v.vendor,
    )  # fmt: skip
