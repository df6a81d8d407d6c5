"""The stages of DeepSeek-OCR. Its numbers are in configs/model/deepseek_ocr.yaml.

Vendor: deepseek_ocr.py (vLLM) and modeling_deepseekocr.py (Hugging Face). Paper: arXiv 2510.18234.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from modelmeter.errors import InputError
from modelmeter.layers import CausalLM, ImageEncoderViT, MlpProjector, VitModel
from modelmeter.models.deepseek_ocr.preprocess import MOST_CROPS, CropRule
from modelmeter.models.model import Model
from modelmeter.ops import Op, Sizes, copy
from modelmeter.sizes import Size, ceil_div
from modelmeter.workload import ImagePlan


@final
@dataclass(frozen=True)
class DeepSeekOCR(Model):
    """Each view goes through SAM, CLIP and projector; all crops of all pages share the batch axis."""

    name: str
    preprocess: CropRule
    sam: ImageEncoderViT
    clip: VitModel
    projector: MlpProjector
    decoder: CausalLM

    def __post_init__(self) -> None:
        features, clip = self.sam.downsample[-1].o, self.clip.norm.d
        leaving = self.projector.c if self.projector.kind == "identity" else self.projector.d
        for what, a, b in (
            ("SAM features and CLIP hidden size", features, clip),
            ("projector inputs and SAM + CLIP features", self.projector.c, features + clip),
            ("projector outputs and decoder hidden size", leaving, self.decoder.embedding.d),
            ("SAM patch and preprocessing patch", self.sam.patch.p, self.preprocess.patch),
        ):
            if a != b:
                raise InputError(f"{self.name}: {what} must be equal, not {a} and {b}")

    def plan(
        self, *, mode: str | None, image_size: tuple[int, int] | None, grid: tuple[Size, Size] | None
    ) -> ImagePlan:
        return self.preprocess.plan(mode, image_size, grid)

    def grids(self, largest: int) -> list[tuple[int, int]]:
        if largest > MOST_CROPS:
            raise InputError(f"largest must be at most {MOST_CROPS} crops, not {largest}")
        found = [(h, w) for h in range(1, largest + 1) for w in range(h, largest // h + 1)]
        return sorted((g for g in found if g[0] * g[1] >= self.preprocess.min_crops), key=lambda g: (g[0] * g[1], g))

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(self.preprocess.modes)

    @property
    def positions(self) -> Size | None:
        return self.decoder.positions

    def has_crops(self, mode: str | None) -> bool:
        return self.preprocess.mode(mode)[1].tile is not None

    def vision(self, n: Sizes, image: ImagePlan) -> Iterator[Op]:
        patch, factor = self.preprocess.patch, self.preprocess.downsample
        width, features = self.projector.c, self.sam.downsample[-1].o
        for view in image.views:
            one = isinstance(view.count, int) and view.count == 1
            b, u, v = n.b if one else n.b * view.count, view.height // patch, view.width // patch
            rows, columns = ceil_div(u, factor), ceil_div(v, factor)
            sam, clip, joined, tokens = (f"{name}_{view.name}" for name in ("sam", "clip", "joined", "tokens"))
            yield from self.sam.at(n, "sam", b=b, u=u, v=v, x=f"pixels_{view.name}", y=sam)
            yield from self.clip.at(n, "clip", b=b, u=rows, v=columns, x=sam, y=clip)
            sizes = {"b": b, "s": rows * columns, "c": width, "o": features, "d": width - features}
            place = n.inside("projector", sizes, {name: name for name in (sam, clip, joined)})
            yield copy(f"{joined}[b s c] = {clip}[b s d] * {sam}[b s o]", place)
            yield from self.projector.at(n, "projector", b=b, s=rows * columns, x=joined, y=tokens)
        yield from self._join(n, image)

    def _join(self, n: Sizes, image: ImagePlan) -> Iterator[Op]:
        """The image's tokens in reading order: a newline after each row, one separator at the end."""
        names = {f"{kind}_{view.name}": f"{kind}_{view.name}" for view in image.views for kind in ("tokens", "rows")}
        lengths = {view.name: view.tokens for view in image.views}
        place = n.inside("join", {"d": self.projector.d, "s": image.tokens, **lengths}, {"image": "image", **names})
        for view in image.views:
            yield copy(f"rows_{view.name}[b {view.name} d] = tokens_{view.name}[b {view.name} d] * W_newline[d]", place)
        parts = " * ".join(f"rows_{view.name}[b {view.name} d]" for view in image.views)
        yield copy(f"image[b s d] = {parts} * W_separator[d]", place)

    def language(self, n: Sizes) -> Iterator[Op]:
        yield from self.decoder.at(n, "", y="logits")
