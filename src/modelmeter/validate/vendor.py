"""The vendor's own classes, from the Python files of a local copy of the model's repository.

Files are executed only because the user named their folder. What they import and this machine
lacks (flash_attn, easydict, names that newer transformers dropped) is replaced by stand-ins.
"""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import transformers  # noqa: F401 (before any stand-in, or its own imports would see them)

from modelmeter import layers as mm
from modelmeter.errors import InputError
from modelmeter.validate.case import Case, layer_ops
from modelmeter.validate.deepseek_ocr import Dims, attention, sam


class _AttributeDict(dict[str, Any]):
    """A dict whose keys are attributes too, as easydict and addict have it."""

    __getattr__ = dict.__getitem__


class _StandIn:
    """Takes the place of whatever cannot be imported; as a decorator it leaves its object alone."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments else self

    def __getattr__(self, name: str) -> Any:
        return _StandIn()


class _Lenient(ModuleType):
    """A module whose missing names are stand-ins."""

    def __init__(self, name: str, real: Any = None) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("EasyDict", "Dict", "ADict"):
            return _AttributeDict
        return getattr(self.__dict__["_real"], name, None) or type(name, (_StandIn,), {})


class _Folder:
    """The Python files of a folder, each executed once, on demand."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.stem: path for path in sorted(folder.rglob("*.py"), reverse=True)}
        self.loaded: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}

    def load(self, stem: str) -> dict[str, Any]:
        if stem not in self.loaded:
            scope = self.loaded[stem] = {"__name__": f"vendor_{stem}", "__file__": str(self.files[stem])}
            scope["__builtins__"] = {**vars(builtins), "__import__": self._import}
            try:
                exec(compile(self.files[stem].read_text(encoding="utf-8"), self.files[stem], "exec"), scope)
            except Exception as error:  # whatever a stranger's file raises is for the user to read
                self.failed[stem] = f"{type(error).__name__}: {error}"
        return self.loaded[stem]

    def _import(self, name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
        stem = name.rpartition(".")[2]
        if stem in self.files and (level or name.partition(".")[0] in self.files or not _installed(name)):
            module = _Lenient(name)
            module.__dict__.update({k: v for k, v in self.load(stem).items() if not k.startswith("__")})
            return module
        try:
            real = __import__(name, scope, local, wanted or (), level)
        except ImportError:
            return _Lenient(name)
        return _Lenient(name, real) if wanted and not name.startswith("torch") else real

    def find(self, name: str) -> Any:
        """The class of this name in any file that mentions it, else None."""
        for stem, path in self.files.items():
            if f"class {name}(" in path.read_text(encoding="utf-8", errors="replace"):
                found = self.load(stem).get(name)
                if isinstance(found, type):
                    return found
        return None


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _clip(d: Dims) -> Any:
    return _AttributeDict(
        num_layers=d.clip_layers, hidden_size=d.clip_hidden, num_heads=d.clip_heads, num_attention_heads=d.clip_heads,
        ffn_hidden_size=d.clip_mlp, seq_length=256, max_position_embeddings=256, use_flash_attn=False,
        attention_dropout=0.0, hidden_dropout=0.0, layernorm_epsilon=1e-5, pre_layernorm_epsilon=1e-5,
        image_size=d.clip_patch * d.clip_grid, patch_size=d.clip_patch,
    )  # fmt: skip


def _decoder(d: Dims) -> Any:
    return SimpleNamespace(
        hidden_size=d.hidden, intermediate_size=d.mlp, moe_intermediate_size=d.expert_mlp, hidden_act="silu",
        num_attention_heads=d.heads, num_key_value_heads=d.kv_heads, n_routed_experts=d.experts,
        num_experts_per_tok=d.active, n_shared_experts=d.shared, routed_scaling_factor=1.0, scoring_func="softmax",
        topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, aux_loss_alpha=0.001, seq_aux=True,
        rms_norm_eps=1e-6, ep_size=1, pretraining_tp=1,
    )  # fmt: skip


def _recipes(d: Dims) -> Iterator[tuple[str, Callable[[Any], Any], Any, dict[str, int], tuple[int, ...]]]:
    """(class name, how to construct it, our layer, sizes, input shape) of each vendor class."""
    ours, hidden, side, line = sam(d), d.sam_hidden, d.grid, {"b": d.b, "s": 257}
    windowed, full = (r.layer for r in ours.blocks)  # type: ignore[attr-defined]
    grid, image = {"b": d.b, "u": side, "v": side}, side * d.patch
    square, width = (d.b, side, side, hidden), d.clip_hidden
    clip_attention = mm.NoTPAttention(width, d.clip_heads, d.clip_head)
    block = mm.NoTPTransformerBlock(clip_attention, mm.NoTPFeedForward(width, d.clip_mlp), mm.LayerNorm(width))
    transformer = mm.NoTPTransformer(block, d.clip_layers)
    patch = mm.PatchEmbed(3, width, d.clip_patch, bias=False)
    embeddings = mm.CLIPVisionEmbeddings(patch, d.clip_grid**2 + 1)
    relative = dict(num_heads=d.sam_heads, use_rel_pos=True, qkv_bias=True, input_size=(side, side))
    yield (
        "PatchEmbed",
        lambda c: c((d.patch, d.patch), (d.patch, d.patch), in_chans=3, embed_dim=hidden),
        ours.patch,
        grid,
        (d.b, 3, image, image),
    )
    yield "Attention", lambda c: c(hidden, **relative), full.attention, grid, square
    yield "MLPBlock", lambda c: c(hidden, d.sam_mlp), full.mlp, {"b": d.b, "s": side * side}, (d.b, side * side, hidden)
    yield "Block", lambda c: c(hidden, **relative, window_size=d.window), windowed, grid, square
    yield "LayerNorm2d", lambda c: c(d.neck), ours.neck_norm, grid, (d.b, d.neck, side, side)
    vit = dict(
        depth=d.windowed + d.global_, embed_dim=hidden, img_size=image, num_heads=d.sam_heads, patch_size=d.patch,
        qkv_bias=True, use_rel_pos=True, global_attn_indexes=tuple(range(d.windowed, d.windowed + d.global_)),
        window_size=d.window, out_chans=d.neck,
    )  # fmt: skip
    yield "ImageEncoderViT", lambda c: c(**vit), ours, grid, (d.b, 3, image, image)
    clip = _clip(d)
    features = (d.b, width, d.clip_grid, d.clip_grid)
    small = {"b": d.b, "u": d.clip_grid, "v": d.clip_grid}
    yield "CLIPVisionEmbeddings", lambda c: c(width, clip.image_size, d.clip_patch), embeddings, small, features
    tokens = (d.b, 257, width)
    yield "NoTPAttention", lambda c: c(clip), clip_attention, line, tokens
    yield "NoTPFeedForward", lambda c: c(clip, dim=width, hidden_dim=d.clip_mlp), block.mlp, line, tokens
    yield "NoTPTransformerBlock", lambda c: c(clip, 1), block, line, tokens
    yield "NoTPTransformer", lambda c: c(clip), transformer, line, tokens
    yield "VitModel", lambda c: c(clip), mm.VitModel(embeddings, mm.LayerNorm(width), transformer), small, features
    inputs = d.downsample[1] + width
    linear = _AttributeDict(projector_type="linear", input_dim=inputs, n_embed=d.hidden)
    yield (
        "MlpProjector",
        lambda c: c(linear),
        mm.MlpProjector("linear", inputs, d.hidden),
        {"b": d.b, "s": 256},
        (d.b, 256, inputs),
    )
    config, text, wide = _decoder(d), {"b": d.b, "s": d.s}, (d.b, d.s, d.hidden)
    yield "DeepseekV2MLP", lambda c: c(config), mm.DeepseekV2MLP(d.hidden, d.mlp), text, wide
    yield "MoEGate", lambda c: c(config), mm.MoEGate(d.hidden, d.experts, d.active), text, wide
    yield "DeepseekV2RMSNorm", lambda c: c(d.hidden), mm.DeepseekV2RMSNorm(d.hidden), text, wide
    mlp = mm.DeepseekV2MLP(d.hidden, d.mlp)
    decoder = mm.DeepseekV2DecoderLayer(attention(d), mlp, mm.DeepseekV2RMSNorm(d.hidden))
    yield "DeepseekV2DecoderLayer", lambda c: c(config, 0), decoder, text | {"t": d.s}, wide


def vendor_cases(folder: str, d: Dims = Dims()) -> tuple[list[Case], list[str]]:
    """The cases of the classes that the folder holds, and a line for each that it lacks.

    Raises InputError if the folder does not exist or has no Python files.
    """
    if not Path(folder).is_dir() or not any(Path(folder).rglob("*.py")):
        raise InputError(f"--vendor {folder!r} is not a folder with the vendor's Python files")
    files = _Folder(Path(folder))
    cases, lacking = [], []
    for name, construct, ours, sizes, shape in _recipes(d):
        found = files.find(name)
        if found is None:
            lacking.append(f"vendor class {name}: not in {folder}" + _why(files))
            continue
        try:
            with torch.device("meta"):
                construct(found)
        except Exception as error:  # a class that needs more than this machine has is listed, not hidden
            lacking.append(f"vendor class {name}: cannot be constructed here ({type(error).__name__}: {error})")
            continue
        cases.append(_case(name, found, construct, ours, sizes, shape))
    return cases, lacking


def _why(files: _Folder) -> str:
    return "".join(f"; {stem}.py failed with {reason}" for stem, reason in files.failed.items())


def _case(name: str, found: Any, construct: Any, ours: Any, sizes: dict[str, int], shape: tuple[int, ...]) -> Case:
    def build() -> tuple[torch.nn.Module, tuple[Any, ...]]:
        return construct(found).to(torch.bfloat16).eval(), (torch.randn(*shape, dtype=torch.bfloat16),)

    def call(module: Any, x: torch.Tensor) -> Any:
        return module(x, x) if name in ("VitModel", "CLIPVisionEmbeddings") else module(x)

    unseen = name in ("LayerNorm2d", "DeepseekV2RMSNorm", "CLIPVisionEmbeddings")
    return Case("vendor", name, found.__module__, layer_ops(ours, **sizes), build, call, unseen=unseen)
