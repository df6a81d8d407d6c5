"""The reference modules of other vision towers and projectors, transformers' own, at a grid of patches.

Configurations are read from our layers, so that the same cases serve full sizes and small ones. What the reference
computes of shapes alone (positions, windows, resampling) it is given, as it takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2 as ocr2
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2VisionConfig
from transformers.models.donut.configuration_donut_swin import DonutSwinConfig
from transformers.models.donut.modeling_donut_swin import DonutSwinModel
from transformers.models.glm_ocr import modeling_glm_ocr as glm
from transformers.models.glm_ocr.configuration_glm_ocr import GlmOcrVisionConfig
from transformers.models.got_ocr2 import modeling_got_ocr2 as got
from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2Config
from transformers.models.internvl import modeling_internvl as internvl
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.paddleocr_vl import modeling_paddleocr_vl as paddle
from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from modelmeter.layers.base import BaseLayer
from modelmeter.layers.merge import tokens_of
from modelmeter.layers.navit import Projected
from modelmeter.sizes import Size, ceil_div, floor_div, symbol
from modelmeter.validate.case import Case, LayerAt, like
from modelmeter.validate.sam import sam_numbers, two_norms

B, U, V = map(symbol, "buv")
"""Images, rows and columns of patches: the named sizes of the cases."""
EAGER = {"runtime": "eager"}
PEAK = "peak_activation_bytes"
WHOLE = {"u": 0, "v": 0}
"""Code that makes numbers of the rows and columns."""


def paddleocr_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """PaddleOCRVisionModel and PaddleOCRProjector on one image of u x v patches."""
    tower, merge, block = model.tower, model.projector, model.tower.blocks[-1].layer
    vision = dict(
        hidden_size=tower.d, intermediate_size=block.mlp.f, num_hidden_layers=tower.blocks[-1].l,
        num_attention_heads=block.attention.h, image_size=tower.U * tower.patch, patch_size=tower.patch,
        hidden_act=block.mlp.activation, spatial_merge_size=merge.side,
    )  # fmt: skip
    config = PaddleOCRVLConfig(vision_config=vision, text_config={"hidden_size": merge.d})
    config.vision_config._attn_implementation = attention
    taps = 4  # of bilinear resampling

    def run(module: Any, pixels: Any, positions: Any) -> Any:
        many, place = pixels.shape[1], {"device": pixels.device}
        indices, weights = torch.zeros(many, taps, dtype=torch.long, **place), torch.zeros(many, taps, **place)
        given = _packed(positions) | {"interp_indices": indices, "interp_weights": weights}
        return module(pixels, **given).last_hidden_state

    patches = like(1, U * V, 3, tower.patch, tower.patch), like(U, V, 2, dtype=torch.long)
    resampled = {
        PEAK: (U * V * taps * (8 + 4) - _frequencies(tower), "taps of positions, and their weights, are made first")
    }
    yield _case("NavitTower", partial(paddle.PaddleOCRVisionModel, config.vision_config), tower, u, v, patches, run,
                resampled)  # fmt: skip
    merging = lambda module, features: module(features.flatten(0, 1), _packed(features)["grid_thw"])
    projector, given = partial(paddle.PaddleOCRProjector, config), (like(U, V, tower.d),)
    yield _case("MergeProjector", projector, merge, u, v, given, merging, steps=dict.fromkeys("uv", merge.side))


def qwen_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """Qwen2VL's or Qwen2.5-VL's vision transformer, its merger included, on one image of u x v patches."""
    tower, merge, block = model.tower, model.projector, model.tower.blocks[-1].layer
    many, frames = sum(stack.l for stack in tower.blocks), tower.patch_embedding.c // 3
    given: dict[str, Any] = dict(
        depth=many, num_heads=block.attention.h, patch_size=tower.patch, temporal_patch_size=frames,
        spatial_merge_size=merge.side,
    )  # fmt: skip
    if tower.windows:
        window, full = tower.blocks[0].layer.attention.window, tower.blocks[-1].l
        given |= dict(hidden_size=tower.d, intermediate_size=block.mlp.f, out_hidden_size=merge.d,
                      window_size=window * tower.patch, fullatt_block_indexes=list(range(many - full, many)))  # fmt: skip
        config, kind = Qwen2_5_VLVisionConfig(**given), qwen2_5.Qwen2_5_VisionTransformerPretrainedModel
    else:
        given |= dict(embed_dim=tower.d, hidden_size=merge.d, mlp_ratio=block.mlp.f // tower.d)
        config, kind = Qwen2VLVisionConfig(**given), qwen2.Qwen2VisionTransformerPretrainedModel
    config._attn_implementation = attention
    steps = dict.fromkeys("uv", 0 if tower.windows else merge.side)  # windows are visited by a loop
    yield _pooled("NavitTower and MergeProjector", partial(kind, config), tower, merge, u, v, steps)


def glm_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """GLM-OCR's vision transformer, its merger included, on one image of u x v patches."""
    tower, merge, block = model.tower, model.projector, model.tower.blocks[-1].layer
    config = GlmOcrVisionConfig(
        depth=tower.blocks[-1].l, hidden_size=tower.d, num_heads=block.attention.h, intermediate_size=block.mlp.f,
        hidden_act=block.mlp.activation, attention_bias=block.attention.bias, patch_size=tower.patch,
        temporal_patch_size=tower.patch_embedding.c // 3, spatial_merge_size=merge.side, out_hidden_size=merge.d,
    )  # fmt: skip
    config._attn_implementation = attention
    squares = dict.fromkeys("uv", merge.side)
    yield _pooled("NavitTower and ConvProjector", partial(glm.GlmOcrVisionModel, config), tower, merge, u, v, squares)


def internvl_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """InternVLVisionModel without its class token and InternVLMultiModalProjector on one tile of u x v patches."""
    tower, merge = model.tower, model.projector
    block = tower.transformer.layer
    inner, side = block.attention, round((tower.embeddings.n - 1) ** 0.5) * tower.patch
    vision = dict(
        hidden_size=tower.d, num_hidden_layers=tower.transformer.l, num_attention_heads=inner.h,
        intermediate_size=block.mlp.f, attention_bias=inner.bias, use_qk_norm=inner.q_norm is not None,
        norm_type="rms_norm" if type(block.norm).__name__ == "RMSNorm" else "layer_norm", use_mean_pooling=True,
        image_size=[side, side], patch_size=[tower.patch] * 2, use_absolute_position_embeddings=True,
    )  # fmt: skip
    config = InternVLConfig(vision_config=vision, text_config={"model_type": "qwen2", "hidden_size": merge.d})
    config.vision_config._attn_implementation = attention
    pixels = like(B, 3, U * tower.patch, V * tower.patch)
    features = like(B, U * V, merge.c * merge.square)
    yield _case("ClassTower", partial(internvl.InternVLVisionModel, config.vision_config), tower, u, v, (pixels,),
                lambda module, x: module(x).last_hidden_state[:, 1:],
                traced={PEAK: "positions that are resampled are a constant of the shape"})  # fmt: skip
    projector = partial(internvl.InternVLMultiModalProjector, config)
    merged = {PEAK: (B * U * V * -2 * merge.c * merge.square, "squares of features are merged before this module")}
    yield _case("MergeProjector", projector, merge, u // merge.side, v // merge.side, (features,),
                lambda module, x: module(x), merged, sizes={"b": B, "s": U * V})  # fmt: skip


def got_cases(model: Any, u: int, v: int, attention: str = "eager") -> Iterator[Case]:
    """GotOcr2VisionEncoder and GotOcr2MultiModalProjector on one image of u x v patches."""
    sam, linear = model.tower.sam, model.projector
    config = GotOcr2Config(vision_config=sam_numbers(sam), text_config={"model_type": "qwen2", "hidden_size": linear.d})

    class Both(nn.Module):
        """Encoder and projector, one after the other."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = got.GotOcr2VisionEncoder(config.vision_config)
            self.projector = got.GotOcr2MultiModalProjector(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.projector(self.encoder(x).last_hidden_state)
            return made

    pixels = like(B, 3, U * sam.patch.p, V * sam.patch.p)
    known = {"cuda_core_flops": (_fewer_scalings(sam), "eager attention scales the queries, not the scores"),
             "kernel_io_bytes": (-2 * linear.d, "the projector's bias is added apart, as its input is permuted")}  # fmt: skip
    yield _case("SamTower and projector", Both, Projected(model.tower, linear), u, v, (pixels,), lambda m, x: m(x), known,
                options=EAGER, steps=WHOLE)  # fmt: skip


def _fewer_scalings(sam: Any) -> Size:
    """Queries less scores, in all blocks; and the neck's two norms, which subtract the mean once."""
    windowed, full = (repeat.layer for repeat in sam.blocks)
    w, d, h = windowed.w, full.d, full.attention.h
    many = ceil_div(U, w) * ceil_div(V, w)
    scores = many * sam.blocks[0].l * (w**4 * h - w**2 * d) + sam.blocks[1].l * ((U * V) ** 2 * h - U * V * d)
    return B * (scores + 2 * sam.neck_norm.c * U * V) * -1


def swin_cases(model: Any, u: int, v: int, attention: str = "eager") -> Iterator[Case]:
    """DonutSwinModel without its pooling on one image of u x v patches."""
    tower = model.tower
    blocks = [stage.layer.layers[0] for stage in tower.stages]
    config = DonutSwinConfig(
        image_size=[u * tower.patch, v * tower.patch], patch_size=tower.patch, embed_dim=tower.norm.d,
        depths=[2 * stage.l for stage in tower.stages], num_heads=[block.attention.h for block in blocks],
        window_size=blocks[0].attention.w, mlp_ratio=float(blocks[0].mlp.f // blocks[0].d),
    )  # fmt: skip
    make, w = partial(DonutSwinModel, config, add_pooling_layer=False), blocks[0].attention.w
    each = (floor_div(U * V, w * w * 4**stage) * w**4 for stage in range(1, len(blocks)))
    masks = {PEAK: (sum(each) * -2, "masks of later stages are constants of the shape")}
    pixels = like(B, 3, U * tower.patch, V * tower.patch)
    yield _case("SwinTower", make, tower, u, v, (pixels,), lambda m, x: m(x).last_hidden_state, masks,
                options=EAGER, steps=WHOLE)  # fmt: skip


def clip_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """CLIPVisionModel; its norm of the class token stands apart from what the decoder sees."""
    tower, block = model.tower, model.tower.vit.transformer.layer
    config = CLIPVisionConfig(
        hidden_size=tower.d, intermediate_size=block.mlp.f, num_hidden_layers=tower.vit.transformer.l,
        num_attention_heads=block.attention.h, image_size=u * tower.patch, patch_size=tower.patch,
    )  # fmt: skip
    config._attn_implementation = attention
    norm = {"parameters": (2 * tower.d, "post_layernorm is of the class token, which no decoder sees"),
            "cuda_core_flops": (B * (7 * tower.d + 2), "post_layernorm of the class token")}  # fmt: skip
    pixels = like(B, 3, U * tower.patch, V * tower.patch)
    yield _case("PatchTower", partial(CLIPVisionModel, config), tower, u, v, (pixels,),
                lambda module, x: module(x).last_hidden_state[:, 1:], norm, steps=WHOLE)  # fmt: skip


def query_config(tower: Any, attention: str = "sdpa") -> Any:
    """The configuration under which DeepseekOcr2VisionModel is our tower."""
    block = tower.blocks.layer
    inner, fields = block.attention, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    encoder = fields | dict(
        hidden_size=tower.d, intermediate_size=block.mlp.f, num_hidden_layers=tower.blocks.l,
        num_attention_heads=inner.g * inner.r, num_key_value_heads=inner.g,
    )  # fmt: skip
    config = DeepseekOcr2VisionConfig(sam_config=sam_numbers(tower.sam), encoder_config=encoder)
    for part in (config, config.sam_config, config.encoder_config):
        part._attn_implementation = attention
    return config


def query_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """DeepseekOcr2VisionModel and the projector on one image of u x v patches."""
    tower, linear = model.tower, model.projector
    pixels, whole = like(1, 3, u * tower.patch, v * tower.patch), tower.sam.features(u, v) + tower.features(u, v)
    run = lambda module, x, positions: module(x, position_ids=positions).last_hidden_state
    known = two_norms(model, u * v) | {"kernel_io_bytes": (
        masked_bytes(tower, whole), "with a mask the attention kernel reads it, and one copy of the keys for each head"
    )}  # fmt: skip
    given = pixels, like(1, whole, dtype=torch.long)
    make = partial(ocr2.DeepseekOcr2VisionModel, query_config(tower, attention))
    yield _case("QueryTower", make, tower, u, v, given, run, known)
    features = like(1, tower.features(u, v), linear.c)
    place, make = LayerAt(linear, {"b": 1, "s": tower.features(u, v)}), partial(nn.Linear, linear.c, linear.d)
    yield Case("vision", "MlpProjector", place, make, (features,), "multi_modal_projector")


def masked_bytes(tower: Any, tokens: int, batch: int = 1) -> int:
    """A mask of one byte a pair, and the keys and values that repeated KV heads have more, in every layer."""
    inner = tower.blocks.layer.attention
    repeated: int = 2 * tokens * inner.g * (inner.r - 1) * inner.e * torch.bfloat16.itemsize
    return int(tower.blocks.l) * batch * (tokens * tokens + repeated)


CASES: dict[str, Callable[..., Iterator[Case]]] = {
    "paddleocr_vl": paddleocr_cases, "qwen2_vl_7b": qwen_cases, "qwen2_5_vl_7b": qwen_cases,
    "internvl2_8b": internvl_cases, "internvl2_76b": internvl_cases, "got_ocr2": got_cases, "minimind2_v": clip_cases,
    "qwen2_vl_2b": qwen_cases, "qwen2_vl_72b": qwen_cases, "qwen2_5_vl_3b": qwen_cases, "qwen2_5_vl_32b": qwen_cases,
    "qwen2_5_vl_72b": qwen_cases, "internvl3_8b": internvl_cases, "nougat_base": swin_cases, "glm_ocr": glm_cases, "deepseek_ocr2": query_cases,
}  # fmt: skip
"""The references of a model's vision stage, by its name: a function of model, rows and columns of patches."""


def _frequencies(tower: Any) -> int:
    """Bytes of the frequencies of a tower's rotary positions."""
    return 4 * (tower.rotary.e // 4)


class _Symbols(np.ndarray[Any, Any]):
    """Whole numbers on the host of which some are symbols: what code asks of a tensor of them."""

    def prod(self, dim: int) -> Any:  # type: ignore[override]
        return super().prod(axis=dim)


def _host(numbers: Any) -> Any:
    """Numbers that code reads, as a tensor on the host, or where a trace has symbols for them as these."""
    found = np.array(numbers, dtype=object)
    if all(type(number) is int for number in found.flat):
        return torch.tensor(numbers, device="cpu")
    return found.view(_Symbols)


def _packed(patches: torch.Tensor) -> dict[str, Any]:
    """What says that patches lie in one image of so many rows and columns, as packed sequences are told."""
    u, v = patches.shape[:2]
    return {"grid_thw": _host([[1, u, v]]), "cu_seqlens": _host([0, u * v]), "position_ids": patches.flatten(0, 1)}


def _pooled(layer: str, make: Any, tower: Any, merge: BaseLayer, u: int, v: int, steps: Mapping[str, int]) -> Case:
    """A tower that is given patches and their positions, and merges them itself."""
    run = lambda module, pixels, positions: module(pixels, **_packed(positions)).pooler_output
    patches = like(U * V, tower.patch_embedding.c * tower.patch**2), like(U, V, 2, dtype=torch.long)
    buffer = {PEAK: (-_frequencies(tower), "frequencies are an input of ours, a buffer of theirs")}
    return _case(layer, make, Projected(tower, merge), u, v, patches, run, buffer, steps=steps)


def _case(
    layer: str, make: Any, ours: BaseLayer, u: int, v: int, inputs: tuple[Any, ...], run: Any, known: Any = None,
    skip: Any = None, sizes: Any = None, options: Any = None, **others: Any,
) -> Case:  # fmt: skip
    """A case on one image of u x v patches; what its inputs do not name is a number."""
    at = dict(b=1, u=u, v=v)
    named = {name for given in tree_leaves(inputs) for name in given.names}
    b, rows, columns = (symbol(name) if name in named else value for name, value in at.items())
    own = {"s": tokens_of(ours, rows * columns)} if ours.sizes == "b s" else {"u": rows, "v": columns}
    many, *_ = ours.sizes.split()
    there = {name: value for name, value in at.items() if name in named}
    placed = LayerAt(ours, sizes or {many: b, **own}, options or {}, there)
    reference = getattr(make, "func", make).__name__
    return Case("vision", layer, placed, make, inputs, reference, run, known=known or {}, skip=skip or {}, **others)
