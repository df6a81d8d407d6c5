"""Components from their numbers: what the YAML files of configs/tower, projector, decoder and planner name.

A family says in code how layers stand together, a YAML gives it numbers. `assembled` puts components together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from modelmeter import layers as nn
from modelmeter.errors import InputError, choose
from modelmeter.folders import PARTS
from modelmeter.layers.decoder import crosses
from modelmeter.layers.queries import PrefixAttention, QueryTower
from modelmeter.layers.sam_towers import SamTower, TwinTower
from modelmeter.models.config_json import decoder_of, model_of, read_config
from modelmeter.models.deepseek_ocr.preprocess import CropRule
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import FixedSize
from modelmeter.models.resize import SmartResize
from modelmeter.models.tiles import Tiles
from modelmeter.models.towers import COLOURS, conv_merge, internvit, merge, navit, share, swin
from modelmeter.models.vlm import VLM, Join, RowsJoin, SeparatedJoin, text_model

JOINS = {"rows": RowsJoin, "separated": SeparatedJoin, "plain": Join}
OFFSET = 2
"""Rows of mBART's table of positions in front of the first: MBartLearnedPositionalEmbedding in transformers."""


def _sam(
    *, hidden: int, heads: int, mlp: int, patch: int, grid: int, window: int, window_blocks: int, global_blocks: int,
    neck: int, downsample: Sequence[int],
) -> nn.ImageEncoderViT:  # fmt: skip
    width = share("sam hidden size", hidden, "heads", heads)

    def blocks(many: int, side: int, w: int | None) -> nn.BaseLayer:
        attention = nn.Attention(hidden, heads, width, side)
        return nn.Repeat(nn.Block(attention, nn.MLPBlock(hidden, mlp), nn.LayerNorm(hidden), w), many)

    channels = [neck, *downsample]
    return nn.ImageEncoderViT(
        patch=nn.PatchEmbed(COLOURS, hidden, patch),
        blocks=(blocks(window_blocks, window, window), blocks(global_blocks, grid, None)),
        neck=(nn.Conv2d(hidden, neck, 1), nn.Conv2d(neck, neck, 3)),
        neck_norm=nn.LayerNorm2d(neck),
        downsample=tuple(nn.Conv2d(c, o, 3, stride=2) for c, o in pairwise(channels)),
        U=grid,
    )


def patch_tower(
    *, hidden: int, heads: int, mlp: int, layers: int, patch: int, projections: str, positions: int
) -> nn.PatchTower:
    """CLIP on pixels, its patches without the class token."""
    merged = choose("projections", projections, ("merged", "split")) == "merged"
    width = share("clip hidden size", hidden, "heads", heads)
    attention = (nn.NoTPAttention if merged else nn.SelfAttention)(hidden, heads, width)
    of, stacked = (nn.NoTPTransformerBlock, nn.NoTPTransformer) if merged else (nn.ResidualBlock, nn.Transformer)
    stack = stacked(of(attention, nn.NoTPFeedForward(hidden, mlp), nn.LayerNorm(hidden)), layers)
    embeddings = nn.CLIPVisionEmbeddings(nn.PatchEmbed(COLOURS, hidden, patch, bias=False), positions, own_patches=True)
    return nn.PatchTower(nn.VitModel(embeddings, nn.LayerNorm(hidden), stack))


def deepencoder(*, sam: Mapping[str, Any], clip: Mapping[str, Any]) -> nn.DeepEncoder:
    """SAM, then CLIP on its features."""
    first, vit = _made("tower.sam", _sam, sam), _made("tower.clip", patch_tower, clip).vit
    return nn.DeepEncoder(first, replace(vit, embeddings=replace(vit.embeddings, own_patches=False)))


def deepseek(
    *, hidden: int, heads: int, kv_heads: int, dense_mlp: int, dense_layers: int, moe_layers: int, experts: int,
    active: int, expert_mlp: int, shared_mlp: int, gate_up: str, rotary: str, vocabulary: int, positions: int,
    tied: bool,
) -> nn.CausalLM:  # fmt: skip
    """DeepSeek-V2 without latent attention: dense layers, then mixtures."""
    e = share("decoder hidden size", hidden, "heads", heads)
    inside = choose("rotary", rotary, ("layer", "model")) == "layer"
    mixture = nn.MergedExpertsMoE if choose("gate_up", gate_up, ("split", "merged")) == "merged" else nn.DeepseekV2MoE
    table = nn.LlamaRotaryEmbedding(e) if inside else None
    attention = nn.LlamaAttention(hidden, kv_heads, share("heads", heads, "KV heads", kv_heads), e, table)
    norm = nn.DeepseekV2RMSNorm(hidden)
    moe = mixture(nn.MoEGate(hidden, experts, active), expert_mlp, nn.DeepseekV2MLP(hidden, shared_mlp))
    layers = (
        nn.Repeat(nn.DeepseekV2DecoderLayer(attention, nn.DeepseekV2MLP(hidden, dense_mlp), norm), dense_layers),
        nn.Repeat(nn.DeepseekV2DecoderLayer(attention, moe, norm), moe_layers),
    )
    shared = None if inside else nn.RotaryEmbedding(e)
    embedding, head = nn.TokenEmbedding(vocabulary, hidden), nn.LMHead(vocabulary, hidden)
    return nn.CausalLM(embedding, layers, norm, head, shared, tied, positions)


def llama(
    *, hidden: int, heads: int, kv_heads: int, head_width: int, mlp: int, layers: int, window: int | None,
    vocabulary: int, positions: int, tied: bool,
) -> nn.CausalLM:  # fmt: skip
    """A dense decoder with grouped KV heads; `window` is that of every layer, or null."""
    groups = share("heads", heads, "KV heads", kv_heads)
    attention = nn.LlamaAttention(hidden, kv_heads, groups, head_width, window=window)
    norm, rotary = nn.RMSNorm(hidden), nn.RotaryEmbedding(head_width)
    block = nn.Repeat(nn.ResidualBlock(attention, nn.GatedMLP(hidden, mlp), norm), layers)
    embedding, head = nn.TokenEmbedding(vocabulary, hidden), nn.LMHead(vocabulary, hidden)
    return nn.CausalLM(embedding, (block,), norm, head, rotary, tied, positions)


def mbart(
    *, hidden: int, heads: int, mlp: int, activation: str, layers: int, vocabulary: int, positions: int, tied: bool
) -> nn.CausalLM:
    """mBART's decoder: learnt positions, cross attention to the features of an encoder in each layer."""
    e, norm = share("decoder hidden size", hidden, "heads", heads), nn.LayerNorm(hidden)
    attention = nn.CausalAttention(hidden, heads, 1, e, rotation="none", bias="qkvo", wide=False)
    block = nn.CrossBlock(attention, nn.CrossAttention(hidden, heads, e), nn.MLP(hidden, mlp, activation), norm)
    embedding, head = nn.TokenEmbedding(vocabulary, hidden, scaled=True), nn.LMHead(vocabulary, hidden)
    learned = nn.LearnedPositions(positions + OFFSET, norm)
    return nn.CausalLM(embedding, (nn.Repeat(block, layers),), norm, head, None, tied, positions, learned=learned)


def config_json(*, config: Any) -> nn.CausalLM:
    """The decoder of a config.json: its fields or where they are."""
    fields = config if isinstance(config, Mapping) else read_config(str(config))
    return decoder_of(fields, "decoder.config")[0]


def sam_tower(*, sam: Mapping[str, Any]) -> SamTower:
    """SAM alone, its last convolution's features the tokens."""
    return SamTower(_made("tower.sam", _sam, sam))


def twin_tower(*, sam: Mapping[str, Any], clip: Mapping[str, Any], small: int, half: int) -> TwinTower:
    """SAM beside CLIP on a copy of `small` pixels, each brought to `half` of the features."""
    vit = _made("tower.clip", patch_tower, clip)
    return TwinTower(_made("tower.sam", _sam, sam), vit, share("small", small, "patch", vit.patch), half)


def _prefix_encoder(*, hidden: int, heads: int, kv_heads: int, mlp: int, layers: int) -> nn.Transformer:
    groups, e = share("heads", heads, "KV heads", kv_heads), share("encoder hidden size", hidden, "heads", heads)
    attention = PrefixAttention(hidden, kv_heads, groups, e)
    return nn.Transformer(nn.ResidualBlock(attention, nn.GatedMLP(hidden, mlp), nn.RMSNorm(hidden)), layers)


def query_tower(*, sam: Mapping[str, Any], encoder: Mapping[str, Any], few: int, many: int) -> QueryTower:
    """SAM, then an encoder of its features and of `few` or `many` queries."""
    first, blocks = _made("tower.sam", _sam, sam), _made("tower.encoder", _prefix_encoder, encoder)
    rotary, norm = nn.RotaryEmbedding(blocks.layer.attention.e), nn.RMSNorm(blocks.d)
    return QueryTower(first, rotary, blocks, norm, few, many)


def mixtures(
    *, hidden: int, heads: int, kv_heads: int, head_width: int, expert_mlp: int, experts: int, active: int, shared: int,
    layers: int, vocabulary: int, positions: int, tied: bool,
) -> nn.CausalLM:  # fmt: skip
    """A decoder whose every layer is a mixture, its router's weights renormalised, with `shared` experts beside."""
    attention = nn.LlamaAttention(hidden, kv_heads, share("heads", heads, "KV heads", kv_heads), head_width)
    beside = nn.GatedMLP(hidden, shared * expert_mlp) if shared else None
    mixture = nn.Mixture(nn.Router(hidden, experts, active, renormalised=True), expert_mlp, beside)
    block = nn.Repeat(nn.ResidualBlock(attention, mixture, nn.RMSNorm(hidden)), layers)
    embedding, head = nn.TokenEmbedding(vocabulary, hidden), nn.LMHead(vocabulary, hidden)
    rotary = nn.RotaryEmbedding(head_width)
    return nn.CausalLM(embedding, (block,), nn.RMSNorm(hidden), head, rotary, tied, positions)


FAMILIES: dict[str, dict[str, Callable[..., Any]]] = {
    "tower": {
        "deepencoder": deepencoder, "clip": patch_tower, "navit": navit, "internvit": internvit, "sam": sam_tower,
        "twin": twin_tower, "swin": swin, "queries": query_tower,
    },
    "projector": {"merge": merge, "conv_merge": conv_merge},
    "decoder": {"deepseek": deepseek, "llama": llama, "config_json": config_json, "mixtures": mixtures, "mbart": mbart},
    "planner": {"crops": CropRule, "fixed": FixedSize, "smart_resize": SmartResize, "tiles": Tiles},
}  # fmt: skip
"""The families by the group of configs/ that names them; what each takes are the keys of its YAML."""


def _made(what: str, family: Callable[..., Any], numbers: Mapping[str, Any]) -> Any:
    """A component from its numbers. Raises InputError for a key that it lacks or does not have."""
    takes = inspect.signature(family).parameters
    for key in numbers:
        choose(f"key of {what}:", str(key), takes)
    for name, parameter in takes.items():
        if parameter.default is parameter.empty and name not in numbers:
            raise InputError(f"{what} lacks {name}; its keys: {', '.join(takes)}")
    try:
        return family(**numbers)
    except InputError as error:
        raise error if str(error).endswith(")") else InputError(f"{error} ({what})") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{what} has not the shape of its YAML file: {str(error).partition(chr(10))[0]}") from None


def component(group: str, numbers: Mapping[str, Any]) -> Any:
    """The component of a group (tower, decoder, planner) from its YAML; None if it is empty."""
    if not isinstance(numbers, Mapping):
        raise InputError(f"{group} must be the keys of a family, not {numbers!r}")
    if not numbers:
        return None
    family = choose(f"family of {group}:", str(numbers.get("family")), FAMILIES[group])
    return _made(group, FAMILIES[group][family], {k: v for k, v in numbers.items() if k != "family"})


def assembled(model: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> BaseModel:
    """A model from its own YAML and those of its components, by group. Raises InputError where they do not fit."""
    if "config" in model:
        return model_of(model["config"], model.get("name"), model.get("changes"))
    tower, decoder, planner = (component(group, parts[group]) for group in ("tower", "decoder", "planner"))
    name = str(model.get("name"))
    if decoder is None:
        raise InputError(f"{name} needs a decoder: decoder=NAME")
    if tower is None or planner is None or not parts["projector"]:
        has = " and ".join(group for group in PARTS if group != "decoder" and parts[group])
        if has:
            raise InputError(f"{name}: what reads images has tower, projector and planner, not {has} alone")
        if crosses(decoder):
            raise InputError(f"{name}: a decoder with cross attention reads images, so it needs a tower before it")
        return text_model(name, decoder)
    projector = _projector(parts["projector"], tower, decoder)
    join = _join(model.get("join"), decoder)
    real = VLM(name, planner, tower, projector, join(projector.leaving) if join else None, decoder)
    if "departures" not in model:
        return real
    from modelmeter.models.deepseek_ocr.published import PublishedDeepSeekOCR

    return PublishedDeepSeekOCR(real, model["departures"])


def _projector(numbers: Mapping[str, Any], tower: Any, decoder: nn.CausalLM) -> Any:
    """The projector from its YAML; None where cross attention reads the tower's features as they are."""
    values = dict(numbers)
    inputs, family = values.pop("inputs", None), values.pop("family", None)
    width = tower.d if inputs is None else inputs
    makes = choose("family of projector:", str(family), FAMILIES["projector"]) if family is not None else ""
    kind: Any = FAMILIES["projector"][makes] if makes else nn.MlpProjector
    made = _made("projector", kind, {"c": width, "d": decoder.d} | values)
    return None if crosses(decoder) and values.get("kind") == "identity" else made


def _join(name: str | None, decoder: nn.CausalLM) -> type[Join] | None:
    """How image tokens enter the decoder's sequence; None where they do not."""
    if crosses(decoder) and name is None:
        return None
    kind = JOINS[choose("model.join", str(name), JOINS)]
    if crosses(decoder) and kind is not Join:
        raise InputError(f"model.join {name} adds tokens to a sequence, and cross attention reads the image beside it")
    return None if crosses(decoder) else kind
