"""SAM's encoder in transformers: its sizes by their names there, and where its code differs from the vendors'."""

from __future__ import annotations

from typing import Any

from modelmeter.sizes import Size


def sam_numbers(sam: Any) -> dict[str, Any]:
    """SAM's sizes by the names of its configuration."""
    windowed, full = (repeat.layer for repeat in sam.blocks)
    first, others = (repeat.l for repeat in sam.blocks)
    return dict(
        hidden_size=full.d, num_attention_heads=full.attention.h, mlp_dim=full.mlp.f, patch_size=sam.patch.p,
        image_size=sam.patch.p * sam.U, window_size=windowed.w, num_hidden_layers=first + others,
        global_attn_indexes=list(range(first, first + others)), output_channels=sam.neck_norm.c,
        downsample_channels=[conv.o for conv in sam.downsample],
    )  # fmt: skip


def two_norms(model: Any, pixels: Size) -> dict[str, tuple[Size, str]]:
    """The neck's two norms subtract the mean once in transformers, twice in the vendor's code."""
    fewer = -2 * model.tower.sam.neck_norm.c * pixels
    return {"cuda_core_flops": (fewer, "transformers' LayerNorm2d subtracts the mean once")}
