"""The reference modules of other vision towers and projectors, transformers' own, at a grid of patches.

Configurations are read from our layers, so that the same cases serve full sizes and small ones. What the reference
computes of shapes alone (positions, windows, resampling) it is given, as it takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
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
from modelmeter.validate.case import Case, LayerAt, like
from modelmeter.validate.sam import sam_numbers, two_norms


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
        place = {"device": pixels.device}
        indices, weights = torch.zeros(u * v, taps, dtype=torch.long, **place), torch.zeros(u * v, taps, **place)
        given = {"position_ids": positions, "interp_indices": indices, "interp_weights": weights}
        return module(pixels, grid_thw=_grid(u, v), **given).last_hidden_state

    patches = like(1, u * v, 3, tower.patch, tower.patch), like(u * v, 2, dtype=torch.long)
    yield _case("NavitTower", partial(paddle.PaddleOCRVisionModel, config.vision_config), tower, u, v, patches, run)
    merging = lambda module, features: module(features, _grid(u, v))
    projector = partial(paddle.PaddleOCRProjector, config)
    yield _case("MergeProjector", projector, merge, u, v, (like(u * v, tower.d),), merging)


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
    yield _pooled("NavitTower and MergeProjector", partial(kind, config), tower, merge, u, v)


def glm_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """GLM-OCR's vision transformer, its merger included, on one image of u x v patches."""
    tower, merge, block = model.tower, model.projector, model.tower.blocks[-1].layer
    config = GlmOcrVisionConfig(
        depth=tower.blocks[-1].l, hidden_size=tower.d, num_heads=block.attention.h, intermediate_size=block.mlp.f,
        hidden_act=block.mlp.activation, attention_bias=block.attention.bias, patch_size=tower.patch,
        temporal_patch_size=tower.patch_embedding.c // 3, spatial_merge_size=merge.side, out_hidden_size=merge.d,
    )  # fmt: skip
    config._attn_implementation = attention
    yield _pooled("NavitTower and ConvProjector", partial(glm.GlmOcrVisionModel, config), tower, merge, u, v)


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
    pixels = like(1, 3, u * tower.patch, v * tower.patch)
    features = like(1, u * v // merge.square, merge.c * merge.square)
    yield _case("ClassTower", partial(internvl.InternVLVisionModel, config.vision_config), tower, u, v, (pixels,),
                lambda module, x: module(x).last_hidden_state[:, 1:])  # fmt: skip
    projector = partial(internvl.InternVLMultiModalProjector, config)
    yield _case("MergeProjector", projector, merge, u, v, (features,), lambda module, x: module(x))


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

    pixels = like(1, 3, u * sam.patch.p, v * sam.patch.p)
    eager = {"kernel_io_bytes": "its attention is eager, ours one kernel"}
    known = {"cuda_core_flops": (_fewer_scalings(sam, u, v), "eager attention scales the queries, not the scores")}
    yield _case("SamTower and projector", Both, Projected(model.tower, linear), u, v, (pixels,), lambda m, x: m(x), known,
                eager)  # fmt: skip


def _fewer_scalings(sam: Any, u: int, v: int) -> int:
    """Queries less scores, in all blocks; and the neck's two norms, which subtract the mean once."""
    windowed, full = (repeat.layer for repeat in sam.blocks)
    w, d, h = windowed.w, full.d, full.attention.h
    many = -(-u // w) * -(-v // w)
    scores = sam.blocks[0].l * many * (w**4 * h - w**2 * d) + sam.blocks[1].l * ((u * v) ** 2 * h - u * v * d)
    return -scores + -2 * sam.neck_norm.c * u * v


def swin_cases(model: Any, u: int, v: int, attention: str = "eager") -> Iterator[Case]:
    """DonutSwinModel without its pooling on one image of u x v patches."""
    tower = model.tower
    blocks = [stage.layer.layers[0] for stage in tower.stages]
    config = DonutSwinConfig(
        image_size=[u * tower.patch, v * tower.patch], patch_size=tower.patch, embed_dim=tower.norm.d,
        depths=[2 * stage.l for stage in tower.stages], num_heads=[block.attention.h for block in blocks],
        window_size=blocks[0].attention.w, mlp_ratio=float(blocks[0].mlp.f // blocks[0].d),
    )  # fmt: skip
    eager = {"kernel_io_bytes": "its attention is eager, ours one kernel"}
    make = partial(DonutSwinModel, config, add_pooling_layer=False)
    pixels = like(1, 3, u * tower.patch, v * tower.patch)
    yield _case("SwinTower", make, tower, u, v, (pixels,), lambda m, x: m(x).last_hidden_state, skip=eager)


def clip_cases(model: Any, u: int, v: int, attention: str = "sdpa") -> Iterator[Case]:
    """CLIPVisionModel; its norm of the class token stands apart from what the decoder sees."""
    tower, block = model.tower, model.tower.vit.transformer.layer
    config = CLIPVisionConfig(
        hidden_size=tower.d, intermediate_size=block.mlp.f, num_hidden_layers=tower.vit.transformer.l,
        num_attention_heads=block.attention.h, image_size=u * tower.patch, patch_size=tower.patch,
    )  # fmt: skip
    config._attn_implementation = attention
    norm = {"parameters": (2 * tower.d, "post_layernorm is of the class token, which no decoder sees"),
            "cuda_core_flops": (7 * tower.d + 2, "post_layernorm of the class token")}  # fmt: skip
    pixels = like(1, 3, u * tower.patch, v * tower.patch)
    yield _case("PatchTower", partial(CLIPVisionModel, config), tower, u, v, (pixels,),
                lambda module, x: module(x).last_hidden_state[:, 1:], norm)  # fmt: skip


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
    "nougat": swin_cases, "glm_ocr": glm_cases, "deepseek_ocr2": query_cases,
}  # fmt: skip
"""The references of a model's vision stage, by its name: a function of model, rows and columns of patches."""


def _grid(u: int, v: int) -> torch.Tensor:
    """One image of u x v patches; on the host, where its shape is read."""
    return torch.tensor([[1, u, v]], device="cpu")


def _pooled(layer: str, make: Any, tower: Any, merge: BaseLayer, u: int, v: int) -> Case:
    """A tower that is given patches and their positions, and merges them itself."""

    def run(module: Any, pixels: Any, positions: Any) -> Any:
        return module(pixels, grid_thw=_grid(u, v), position_ids=positions).pooler_output

    patches = like(u * v, tower.patch_embedding.c * tower.patch**2), like(u * v, 2, dtype=torch.long)
    return _case(layer, make, Projected(tower, merge), u, v, patches, run)


def _case(
    layer: str, make: Any, ours: BaseLayer, u: int, v: int, inputs: tuple[Any, ...], run: Any, known: Any = None,
    skip: Any = None,
) -> Case:  # fmt: skip
    one, *_ = ours.sizes.split()
    sizes = {one: 1} | ({"s": tokens_of(ours, u * v)} if ours.sizes == "b s" else {"u": u, "v": v})
    reference = getattr(make, "func", make).__name__
    return Case("vision", layer, LayerAt(ours, sizes), make, inputs, reference, run, known=known or {}, skip=skip or {})
