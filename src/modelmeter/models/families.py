"""Components from their numbers: what the YAML files of configs/tower, projector, decoder and planner name.

A family says in code how layers stand together, a YAML gives it numbers. `assembled` puts components together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from modelmeter.errors import InputError, choose, unknown
from modelmeter.folders import PARTS
from modelmeter.layers import (
    Attention,
    BaseLayer,
    Block,
    CausalLM,
    CLIPVisionEmbeddings,
    Conv2d,
    DeepEncoder,
    DeepseekV2DecoderLayer,
    DeepseekV2MLP,
    DeepseekV2MoE,
    DeepseekV2RMSNorm,
    GatedMLP,
    ImageEncoderViT,
    LayerNorm,
    LayerNorm2d,
    LlamaAttention,
    LlamaRotaryEmbedding,
    LMHead,
    MergedExpertsMoE,
    MLPBlock,
    MlpProjector,
    MoEGate,
    NoTPAttention,
    NoTPFeedForward,
    NoTPTransformer,
    NoTPTransformerBlock,
    PatchEmbed,
    PatchTower,
    Repeat,
    ResidualBlock,
    RMSNorm,
    RotaryEmbedding,
    SelfAttention,
    TokenEmbedding,
    Transformer,
    VitModel,
)
from modelmeter.layers.base import require_divisible
from modelmeter.models.deepseek_ocr.preprocess import CropRule
from modelmeter.models.model import BaseModel
from modelmeter.models.planner import FixedSize
from modelmeter.models.vlm import VLM, Join, RowsJoin, text_model
from modelmeter.sizes import Size

JOINS = {"rows": RowsJoin, "plain": Join}
COLOURS = 3


def _share(what: str, whole: Any, by: str, parts: Any) -> Any:
    """The quotient of two numbers of a component, which must divide."""
    for name, value in ((what, whole), (by, parts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    require_divisible("configuration", what, whole, by, parts)
    return whole // parts


def _sam(
    *, hidden: int, heads: int, mlp: int, patch: int, grid: int, window: int, window_blocks: int, global_blocks: int,
    neck: int, downsample: Sequence[int],
) -> ImageEncoderViT:  # fmt: skip
    width = _share("sam hidden size", hidden, "heads", heads)

    def blocks(many: int, side: int, w: int | None) -> BaseLayer:
        attention = Attention(hidden, heads, width, side)
        return Repeat(Block(attention, MLPBlock(hidden, mlp), LayerNorm(hidden), w), many)

    channels = [neck, *downsample]
    return ImageEncoderViT(
        patch=PatchEmbed(COLOURS, hidden, patch),
        blocks=(blocks(window_blocks, window, window), blocks(global_blocks, grid, None)),
        neck=(Conv2d(hidden, neck, 1), Conv2d(neck, neck, 3)),
        neck_norm=LayerNorm2d(neck),
        downsample=tuple(Conv2d(c, o, 3, stride=2) for c, o in pairwise(channels)),
        U=grid,
    )


def _clip(
    own_patches: bool, *, hidden: int, heads: int, mlp: int, layers: int, patch: int, projections: str, positions: int
) -> VitModel:
    merged = choose("projections", projections, ("merged", "split")) == "merged"
    width = _share("clip hidden size", hidden, "heads", heads)
    attention = (NoTPAttention if merged else SelfAttention)(hidden, heads, width)
    parts = (attention, NoTPFeedForward(hidden, mlp), LayerNorm(hidden))
    return VitModel(
        CLIPVisionEmbeddings(PatchEmbed(COLOURS, hidden, patch, bias=False), positions, own_patches),
        LayerNorm(hidden),
        NoTPTransformer(NoTPTransformerBlock(*parts), layers) if merged else Transformer(ResidualBlock(*parts), layers),
    )


def clip(**numbers: Any) -> PatchTower:
    """CLIP on pixels, its patches without the class token."""
    return PatchTower(_made("tower", _clip, {"own_patches": True} | numbers))


def deepencoder(*, sam: Mapping[str, Any], clip: Mapping[str, Any]) -> DeepEncoder:
    """SAM, then CLIP on its features."""
    first = _made("tower.sam", _sam, sam)
    return DeepEncoder(first, _made("tower.clip", _clip, {"own_patches": False} | dict(clip)))


def _language_model(
    hidden: Size, vocabulary: Size, positions: Size, tied: bool, norm: RMSNorm, rotary: BaseLayer | None,
    *layers: BaseLayer,
) -> CausalLM:  # fmt: skip
    embedding, head = TokenEmbedding(vocabulary, hidden), LMHead(vocabulary, hidden)
    return CausalLM(embedding, layers, norm, head, rotary, tied, positions)


def deepseek(
    *, hidden: int, heads: int, kv_heads: int, dense_mlp: int, dense_layers: int, moe_layers: int, experts: int,
    active: int, expert_mlp: int, shared_mlp: int, gate_up: str, rotary: str, vocabulary: int, positions: int,
    tied: bool,
) -> CausalLM:  # fmt: skip
    """DeepSeek-V2 without latent attention: dense layers, then mixtures."""
    e = _share("decoder hidden size", hidden, "heads", heads)
    inside = choose("rotary", rotary, ("layer", "model")) == "layer"
    mixture = MergedExpertsMoE if choose("gate_up", gate_up, ("split", "merged")) == "merged" else DeepseekV2MoE
    table = LlamaRotaryEmbedding(e) if inside else None
    attention = LlamaAttention(hidden, kv_heads, _share("heads", heads, "KV heads", kv_heads), e, table)
    norm = DeepseekV2RMSNorm(hidden)
    moe = mixture(MoEGate(hidden, experts, active), expert_mlp, DeepseekV2MLP(hidden, shared_mlp))
    layers = (
        Repeat(DeepseekV2DecoderLayer(attention, DeepseekV2MLP(hidden, dense_mlp), norm), dense_layers),
        Repeat(DeepseekV2DecoderLayer(attention, moe, norm), moe_layers),
    )
    shared = None if inside else RotaryEmbedding(e)
    return _language_model(hidden, vocabulary, positions, tied, norm, shared, *layers)


def llama(
    *, hidden: int, heads: int, kv_heads: int, head_width: int, mlp: int, layers: int, window: int | None,
    vocabulary: int, positions: int, tied: bool,
) -> CausalLM:  # fmt: skip
    """A dense decoder with grouped KV heads; `window` is that of every layer, or null."""
    groups = _share("heads", heads, "KV heads", kv_heads)
    attention = LlamaAttention(hidden, kv_heads, groups, head_width, window=window)
    norm = RMSNorm(hidden)
    block = Repeat(ResidualBlock(attention, GatedMLP(hidden, mlp), norm), layers)
    return _language_model(hidden, vocabulary, positions, tied, norm, RotaryEmbedding(head_width), block)


FAMILIES: dict[str, dict[str, Callable[..., Any]]] = {
    "tower": {"deepencoder": deepencoder, "clip": clip},
    "decoder": {"deepseek": deepseek, "llama": llama},
    "planner": {"crops": CropRule, "fixed": FixedSize},
}
"""The families by the group of configs/ that names them; what each takes are the keys of its YAML."""


def _made(what: str, family: Callable[..., Any], numbers: Mapping[str, Any]) -> Any:
    """A component from its numbers. Raises InputError for a key that it lacks or does not have."""
    takes = {p.name: p for p in inspect.signature(family).parameters.values() if p.kind is not p.VAR_KEYWORD}
    if len(takes) == len(inspect.signature(family).parameters):
        for key in numbers:
            if key not in takes:
                raise unknown(f"key of {what}:", str(key), takes)
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
    tower, decoder, planner = (component(group, parts[group]) for group in ("tower", "decoder", "planner"))
    name = str(model.get("name"))
    if decoder is None:
        raise InputError(f"{name} needs a decoder: decoder=NAME")
    if tower is None or planner is None or not parts["projector"]:
        given = [group for group in PARTS if group != "decoder" and parts[group]]
        if given:
            has = " and ".join(given)
            raise InputError(f"{name}: what reads images has tower, projector and planner, not {has} alone")
        return text_model(name, decoder)
    values = dict(parts["projector"])
    inputs = values.pop("inputs", None)
    width = tower.d if inputs is None else inputs
    projector = _made("projector", MlpProjector, {"c": width, "d": decoder.d} | values)
    layout = JOINS[choose("model.join", str(model.get("join")), JOINS)]
    join = layout(projector.d if projector.kind != "identity" else width)
    real = VLM(name, planner, tower, projector, join, decoder)
    if "departures" not in model:
        return real
    from modelmeter.models.deepseek_ocr.published import PublishedDeepSeekOCR

    return PublishedDeepSeekOCR(real, model["departures"])
