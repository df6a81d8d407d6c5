"""Towers and projectors of other vision-language models from their numbers: see `families.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmeter import layers as nn
from modelmeter.errors import InputError, choose
from modelmeter.layers.base import require_divisible
from modelmeter.layers.merge import ConvProjector, MergeProjector
from modelmeter.layers.navit import NavitBlock, NavitTower, VisionAttention
from modelmeter.layers.norm import Norm
from modelmeter.layers.rotary import AxialRotary
from modelmeter.layers.scaled import ClassTower, ScaledBlock
from modelmeter.layers.swin import GridMerge, SwinBlock, SwinTower, WindowAttention

COLOURS = 3
NORMS: dict[str, type[Norm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def share(what: str, whole: Any, by: str, parts: Any) -> Any:
    """The quotient of two numbers of a component, which must divide."""
    for name, value in ((what, whole), (by, parts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    require_divisible("configuration", what, whole, by, parts)
    return whole // parts


def navit(
    *, hidden: int, heads: int, mlp: int, layers: int, patch: int, frames: int, patch_bias: bool, grid: int | None,
    norm: str, activation: str, gated: bool, projections: str, window: int | None, global_layers: int, final_norm: bool,
    weights_kept: bool, qk_norm: bool, bias: bool = True, first_norm: bool = False,
) -> NavitTower:  # fmt: skip
    """A vision transformer at native resolution; with a window all layers have it but `global_layers`.

    `qk_norm`: queries and keys are normalised head by head; `bias`: of attention and gated MLPs; `first_norm`: patches
    are normalised before all blocks.
    """
    e, kind = share("tower hidden size", hidden, "heads", heads), NORMS[choose("norm", norm, NORMS)]
    merged = choose("projections", projections, ("merged", "split")) == "merged"
    if not 0 <= global_layers <= layers:
        raise InputError(f"global_layers must be from 0 to all {layers} layers, not {global_layers}")
    near = layers - global_layers if window is not None else 0
    own = kind(e) if qk_norm else None

    def blocks(many: int, side: int | None) -> tuple[nn.BaseLayer, ...]:
        attention = VisionAttention(
            hidden, heads, e, turned=True, window=side, one_matrix=merged, q_norm=own, k_norm=own, kept=weights_kept,
            bias=bias, out_bias=bias,
        )  # fmt: skip
        part = nn.GatedMLP(hidden, mlp, activation, bias) if gated else nn.MLP(hidden, mlp, activation)
        return (nn.Repeat(NavitBlock(attention, part, kind(hidden)), many),) if many else ()

    return NavitTower(
        nn.PatchEmbed(COLOURS * frames, hidden, patch, patch_bias), AxialRotary(e),
        (*blocks(near, window), *blocks(layers - near, None)), kind(hidden) if final_norm else None, grid,
        windows=window is not None, first=kind(hidden) if first_norm else None,
    )  # fmt: skip


def internvit(
    *, hidden: int, heads: int, mlp: int, layers: int, patch: int, positions: int, norm: str, qk_norm: bool, bias: bool,
) -> ClassTower:  # fmt: skip
    """InternViT: a class token, layer scale, queries and keys normalised or not."""
    e, kind = share("tower hidden size", hidden, "heads", heads), NORMS[choose("norm", norm, NORMS)]
    whole = nn.RMSNorm(hidden) if qk_norm else None
    attention = VisionAttention(hidden, heads, e, bias=bias, q_norm=whole, k_norm=whole, wide=False)
    block = ScaledBlock(attention, nn.MLP(hidden, mlp), kind(hidden))
    embeddings = nn.CLIPVisionEmbeddings(nn.PatchEmbed(COLOURS, hidden, patch), positions, own_patches=True)
    return ClassTower(embeddings, nn.Transformer(block, layers))


def swin(
    *, hidden: int, heads: Sequence[int], mlp_ratio: int, layers: Sequence[int], patch: int, window: int
) -> SwinTower:
    """Swin: the width doubles from stage to stage; `layers` and `heads` are those of each."""
    if len(heads) != len(layers) or not layers:
        raise InputError(f"heads and layers must name as many stages, not {len(heads)} and {len(layers)}")
    stages, merges = list[nn.BaseLayer](), list[nn.BaseLayer]()
    for index, (many, h) in enumerate(zip(layers, heads, strict=True)):
        d = hidden * 2**index
        require_divisible("configuration", f"layers of stage {index}", many, "a plain and a shifted one,", 2)
        mlp, norm, e = nn.MLP(d, mlp_ratio * d), nn.LayerNorm(d), share(f"stage {index} hidden size", d, "heads", h)
        pair = (SwinBlock(WindowAttention(d, h, e, window, shifted), mlp, norm) for shifted in (False, True))
        stages.append(nn.Repeat(nn.Sequence(tuple(pair)), many // 2))
        merges.append(GridMerge(d))
    patches = nn.PatchEmbed(COLOURS, hidden, patch)
    return SwinTower(patches, nn.LayerNorm(hidden), tuple(stages), tuple(merges[:-1]))


INNER = ("merged", "output")


def merge(
    *, c: int, d: int, side: int, inner: str, norm: str, behind: bool, activation: str, copies: int
) -> MergeProjector:
    """Squares of features to tokens; `inner`: the width of the first layer; `behind`: the norm follows the merge."""
    wide = c * side * side
    kind = NORMS[choose("norm", norm, NORMS)](wide if behind else c)
    f = wide if choose("inner", inner, INNER) == "merged" else d
    return MergeProjector(c, f, d, kind, side, activation, copies)


def conv_merge(*, c: int, d: int, side: int, mlp: int, activation: str) -> ConvProjector:
    """Squares of features to tokens by a convolution, and a gated MLP of them."""
    return ConvProjector(c, nn.LayerNorm(d), nn.GatedMLP(d, mlp, activation), side)
