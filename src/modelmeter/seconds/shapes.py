"""Work of the laws from shapes: which format is multiplied at which peak, how many bytes an element takes.

A format that a device has no units for is stored as it is and multiplied in bf16 (weights alone are quantised then).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError, choose
from modelmeter.seconds.laws import Array, Work, either, real, whole
from modelmeter.seconds.mixture import Loads

NVIDIA = frozenset({"Ampere", "Ada", "Hopper", "Blackwell", "Blackwell datacenter"})
"""Architectures whose devices share constants."""
FLASH3 = frozenset({"Hopper"})
"""Architectures that run FlashAttention 3; others run FlashAttention 2, and FlashInfer on a cache of 8 bits."""
TENSOR = frozenset({"Blackwell datacenter"})
"""Architectures whose fused kernels (TensorRT-LLM's, in FlashInfer) group heads and overlap exponentials as well, and
multiply a cache of 8 bits in 8 bits. Recalled."""
WIDTHS = 32.0
"""Kernels are made for heads of a multiple of so many elements; narrower ones are padded."""
CONVERTED, LANES = 2.0, 128.0
"""Instructions that make an element of 16 bits of one of 8 (recalled: 9 for 4 of them), and those of a cycle."""


def cache_variant(device: Device, law: str, narrow: bool) -> str:
    """The variant of attention that an engine runs on a cache of 16 bits, or of 8."""
    if not narrow or device.architecture in TENSOR:
        return "fp8" if narrow else "bf16"
    if device.architecture not in FLASH3:
        return "fp8.flashinfer"
    return "fp8.xqa" if law == "decode" and device.engine == "tensorrt_llm" else "fp8.fa3"


Tiles = tuple[tuple[Array, ...], tuple[Array, ...]]
"""Rows that a tile may have, and columns."""


class Multiplied(NamedTuple):
    """A format of products: bytes an element of activations and of weights, the format of the engine's units."""

    left: float
    right: float
    units: str


FORMATS = {
    "fp32": Multiplied(4, 4, "fp32"),
    "tf32": Multiplied(4, 4, "tf32"),
    "bf16": Multiplied(2, 2, "bf16"),
    "fp16": Multiplied(2, 2, "bf16"),
    "fp8": Multiplied(1, 1, "fp8"),
    "fp8_block": Multiplied(1 + 4 / 128, 1 + 4 / 128**2, "fp8"),
    "int8": Multiplied(1, 1, "int8"),
    "fp4": Multiplied(0.5, 0.5, "fp4"),
    "nvfp4": Multiplied(0.5625, 0.5625, "fp4"),
    "fp8_wo": Multiplied(2, 1, "bf16"),
    "int8_wo": Multiplied(2, 1, "bf16"),
    "int4_wo": Multiplied(2, 0.5 + 2 / 128, "bf16"),
    "mxfp4_wo": Multiplied(2, 0.5 + 1 / 32, "bf16"),
}
"""Formats of products; `_wo`: of the weights only."""
MARLIN = (8.0, 16.0, 32.0, 48.0, 64.0)
"""Rows of Marlin's tiles: the first that holds 1.1 times the mean rows of an expert."""
EARLIER = {"Hopper": 0.63, "Blackwell datacenter": 0.315}
"""Share of the peak that the instructions of Ampere reach, by architecture: recalled from published microbenchmarks of
Hopper; as many FLOPs a cycle on datacenter Blackwell, where FlashAttention 2, which is made of them, is no faster: 340
to 380 TFLOP/s (https://github.com/Dao-AILab/flash-attention/issues/1589)."""
EARLY = frozenset({"Ampere", "Ada"})
"""Architectures for which CUTLASS has no grouped products in vLLM. Recalled."""
UNTUNED: Tiles = ((128,), (16,))
"""The first of FlashInfer's tiles for fp8 on Hopper: what it takes where nobody tuned it."""
COPIED = {"fp8_block": 7.0}
"""Bytes that CUTLASS's mixtures move for each element of a pick's row before the products, to put the rows of an expert
together: read and written in the format of the activations, but block-scaled fp8 in bf16, and quantised then."""
FEW = 64.0
"""Rows up to which a vector kernel is asked: with more it would multiply what CUDA cores have no operands for."""
FRAGMENT = 8.0
"""Columns of the matrix units' smallest product."""
VECTORS = frozenset({"Pascal", "RDNA2", "Xe-LPG", "Apple"})
"""Architectures without matrix units but in devices that multiply more than their vector units can (M5)."""
PAIRS = 2.0
"""Numbers of 16 bits that a lane multiplies where there are no matrix units."""
LARGE = 128.0
"""The side of the large tiles of most kernels."""
BY_ROWS = {
    "Ampere": ((16, 16, 64), (32, 32, 64), (64, 64, 128), (np.inf, 128, 128)),
    "Ada": ((16, 16, 64), (32, 32, 64), (64, 64, 64), (128, 64, 128), (256, 64, 128), (np.inf, 128, 128)),
    "Hopper": ((64, 64, 64), (128, 64, 128), (np.inf, 128, 128)),
    "Blackwell": ((32, 32, 64), (256, 64, 64), (np.inf, 128, 128)),
    "Blackwell datacenter": ((64, 64, 64), (np.inf, 128, 128)),
}
"""Tiles of vLLM's CUTLASS kernels for fp8 and int8, by architecture: up to so many rows, then rows x columns. Recalled;
those of Hopper and Blackwell agree with the data, where a tile's cycles for each element of k tell its area."""
PAIRED = 0.5
"""Share of a tile's columns that each of two multiprocessors loads, where they multiply a tile of twice the rows
together (tcgen05 with cta_group::2, which vLLM's kernels for quantised activations take beyond 128 rows)."""
BLOCKWISE: Tiles = ((64, 64, 128, 128, 128), (64, 128, 64, 128, 256))
"""Tiles of DeepGEMM, which takes the best ones."""
SCALED = 128.0
"""Products that a scale of block-scaled fp8 belongs to."""
BY_ROW = frozenset({"fp8", "int8"})
"""Formats whose activations have a scale a row."""
EIGHT = BY_ROW | {"fp8_block"}
"""Formats whose activations are quantised to 8 bits."""
QUANTISED = frozenset({"fp8", "fp8_block", "int8", "fp4", "nvfp4"})
"""Formats whose activations a kernel quantises first."""


def multiplied(device: Device, variant: str) -> Multiplied:
    """How a device multiplies in a format (before a dot: the engine's kernel is behind it)."""
    name = variant.partition(".")[0]
    form = FORMATS[choose("format of products", name, FORMATS)]
    units = units_of(device, name)
    return form if units == form.units else form._replace(left=2.0, units=units)


def units_of(device: Device, form: str) -> str:
    """The units that multiply a format on a device: bf16 where it has none of them, or where several are mixed."""
    name = FORMATS[form].units if form in FORMATS else "bf16"
    return name if name in device.peaks or name in ("bf16", "fp32") else "bf16"


def require_units(device: Device, form: str) -> None:
    """Raise InputError for activations in a format that a device has no units for."""
    if form in FORMATS and (lacking := FORMATS[form].units) != units_of(device, form):
        raise InputError(
            f"{device.name} multiplies no {lacking} (it has {', '.join({'bf16': 0, **device.peaks})}); store weights "
            "alone so (precision.activations=bf16) or take a device that has it"
        )


def weights_alone(device: Device, forms: Iterable[str]) -> list[str]:
    """Of formats of products, units that a device lacks: weights are stored so, and multiplied in bf16."""
    return sorted({FORMATS[form].units for form in forms if form in FORMATS} - {*device.peaks, "bf16", "fp32"})


def plain_seconds(flops: Mapping[str, Array], device: Device) -> Array:
    """Seconds of FLOPs by format at the peaks of their units, and at the clock that the device was seen at above its
    datasheet's."""
    above = device.above
    found = [work / (above * device.peak(units_of(device, form))) for form, work in flops.items()]
    return sum(found[1:], start=found[0]) if found else 0.0


def nearest(variant: str) -> str:
    """The format whose extras stand for those of a variant that was measured nowhere: of activations quantised, fp8."""
    form = variant.partition(".")[0]
    return "fp8" if form in QUANTISED else form


def product_work(
    device: Device, variant: str, m: Array, n: Array, k: Array, batch: Array = 1.0, warm: bool = False
) -> Work:
    """The work of products of m x k with k x n."""
    form = multiplied(device, variant)
    sizes = {name: real(size) for name, size in (("m", m), ("n", n), ("k", k), ("batch", batch))}
    plain = form.left == form.right or not matrix_units(device)
    vectors = form.units in ("bf16", "fp32") and plain and sizes["m"] <= FEW
    name = variant.partition(".")[0]
    peak = promoted(device) if name == "fp8_block" and form.units == "fp8" else device.peak(form.units)
    known: Work = {
        "left": form.left,
        "right": form.right,
        "peak": peak,
        "by_row": name in BY_ROW,
        "eight": name in EIGHT,
    }
    if form.units in ("fp8", "int8", "fp4") and device.architecture in BY_ROWS:
        known = {**known, "tiles": product_tiles(device, name, sizes["m"])}
        if device.architecture in TENSOR:
            known["pair"] = either(sizes["m"] > LARGE, PAIRED, 1.0)
    return {**sizes, **known, "vectors": vectors, "warm": warm}


def matrix_units(device: Device) -> bool:
    """Whether a device has units for products beside its vector units, whose numbers of 16 bits go in pairs."""
    return device.architecture not in VECTORS or device.tensor_flops_per_s > PAIRS * device.cuda_flops_per_s


def decode_rows(device: Device, ggml: bool) -> float | None:
    """What the queries of a KV head are padded to in a step of decode; None: by FlashAttention's or FlashInfer's rules.

    A vector kernel pads none; of matrix units llama.cpp (`ggml`) takes 8 columns, others take the 16 of a fragment.
    """
    if not ggml and device.architecture in NVIDIA:
        return None
    return (FRAGMENT if ggml else 2 * FRAGMENT) if matrix_units(device) else 1.0


def promoted(device: Device) -> float:
    """The peak of block-scaled fp8: of each sum of 128 products CUDA cores make one multiplication and addition."""
    lanes = 2 * SCALED * LANES * device.need("multiprocessors") * device.need("clock_hz")
    return 1 / (1 / device.peak("fp8") + 1 / lanes)


def product_tiles(device: Device, form: str, m: Array) -> Tiles:
    """Rows and columns of the tiles of vLLM's CUTLASS kernels, by the rows of the product."""
    if form in ("fp4", "nvfp4"):
        return (LARGE,), (LARGE,)
    if form == "fp8_block":
        return BLOCKWISE
    *several, last = BY_ROWS[device.architecture]
    up_to = [m <= most for most, *_ in several]
    rows, columns = (np.select(up_to, [tile[i] for tile in several], last[i]) for i in (1, 2))
    return (rows,), (columns,)


def attention_work(
    device: Device, law: str, variant: str, batch: Array, heads: Array, kv_heads: Array, width: Array, s: Array,
    t: Array, window: Array = 0.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of attention of s queries over t keys; `variant` begins with the format of the cache.

    The query heads of one KV head share a block (`grouped`) but in FlashAttention 2, which does so for one query and no
    window, and splits a sequence only then; with several sequences and KV heads, two kernels copy queries and outputs.
    """
    names = ("batch", "heads", "kv_heads", "width", "s", "t", "window")
    known = dict(zip(names, map(real, (batch, heads, kv_heads, width, s, t, window)), strict=True))
    each = FORMATS[choose("format of the cache", variant.partition(".")[0], FORMATS)].right
    three, tensor = device.architecture in FLASH3, device.architecture in TENSOR
    two = not (three or tensor) and each >= 2
    swapped = two and (known["s"] == 1) & (known["heads"] > known["kv_heads"]) & (known["window"] == 0)
    copies = swapped & (known["batch"] > 1) & (known["kv_heads"] > 1) if two else False
    kernel = variant.partition(".")[2]
    own = kernel == "xqa" or tensor
    more = not own and (three or kernel == "flashinfer" or (law == "decode" and not two))
    return {
        **known,
        "kv_bytes": each,
        "peak": device.peak("fp8" if own and each < 2 else "bf16"),
        "causal": law != "vision",
        "writes": law == "prefill",
        "grouped": swapped if two else True,
        "passes": either(copies, 3.0, 1.0),
        "kernels": 2.0 + more + 2.0 * copies,
        "line": _line(known["width"]) if two else LARGE,
        "together": 1.0 if three or tensor else 2.0,
        "overlaps": tensor or (three and law != "vision"),
        "warm": warm,
        **_blocks(known, kernel),
    }


def _line(width: Array) -> Array:
    """Keys that FlashAttention 2 takes at a time, by the width of a head."""
    return either(width <= 64, 256.0, either(width <= 128, LARGE, LARGE / 2))


def _blocks(known: Work, kernel: str) -> Work:
    """The rows of a kernel's blocks, queries of one KV head; heads as it pads them; cycles to convert an element.

    FlashInfer takes rows by the queries that a sequence has, and each of the four warps of a block converts the keys
    and values that it multiplies: all of them, but in blocks of 16 rows, where each warp has keys of its own. Triton's
    blocks have 16 rows, or the query heads of a KV head where these are more, and heads of a power of two. XQA of
    TensorRT-LLM on Hopper multiplies in 8 bits and has keys on the rows of the instructions, queries in columns, eight
    at least (SWAP_AB in cpp/kernels/xqa/mha_sm90.cu, NVIDIA/TensorRT-LLM), and adds up the parts of a sequence itself.
    """
    shared, width = known["heads"] / known["kv_heads"], known["width"]
    padded, packed = whole(width, WIDTHS) * WIDTHS, known["s"] * shared
    rows = either(packed <= 16, 16.0, either((packed <= 64) | (width >= 256), LARGE / 2, LARGE))
    if kernel == "triton":
        rows, padded = (2 ** np.ceil(np.log2(size)) for size in (np.maximum(shared, 16), width))
    elif kernel == "xqa":
        rows = whole(shared, FRAGMENT) * FRAGMENT
    elif kernel != "flashinfer":
        return {"rows": LARGE / 2, "padded": padded, "converted": 0.0}
    each = either(rows > 16, 4.0, 1.0) if kernel == "flashinfer" else 1.0
    return {"rows": rows, "block": rows, "padded": padded, "converted": CONVERTED / LANES * each}


def mixture_variant(device: Device, variant: str) -> str:
    """The variant of a mixture that was measured: fp8 on Hopper ran kernels of its own (TMA) that nobody had tuned."""
    return "fp8.tma" if variant == "fp8" and device.architecture in FLASH3 else variant


def mixture_kernel(device: Device, variant: str) -> str:
    """The kernel of mixtures that vLLM runs: Triton, Marlin for quantised weights, CUTLASS for quantised activations
    (from Hopper on) and, on Blackwell, for 16 bits; a variant may tell it behind its dot.
    """
    form, _, told = variant.partition(".")
    if told == "triton":
        return told
    if form.endswith("_wo") or (form in QUANTISED and units_of(device, form) == "bf16"):
        return "marlin"
    if device.architecture in EARLY:
        return "triton"
    return "cutlass" if form in QUANTISED or device.architecture.startswith("Blackwell") else "triton"


def mixture_tiles(kernel: str, variant: str, tokens: Array, mean: Array) -> Tiles:
    """Rows and columns of the tiles that a kernel may have.

    Triton's by the tokens (vLLM's default), Marlin's rows by the mean rows of an expert, few or many of CUTLASS, whose
    kernels for fp4 have one size.
    """
    form = variant.partition(".")[0]
    if kernel == "triton" and variant.startswith("fp8_block"):
        return (either(tokens <= 64, 16.0, 64.0),), (LARGE,)
    if kernel == "triton":
        rows = np.select([tokens <= 32, tokens <= 96, tokens <= 512], [16.0, 32.0, 64.0], LARGE)
        return (rows,), (either(tokens <= 64, LARGE / 2, LARGE),)
    if variant == "fp8.tma":
        return UNTUNED
    if form in ("fp4", "nvfp4"):
        return (LARGE,), (LARGE, 2 * LARGE)
    sizes: tuple[Array, ...] = (LARGE / 4, LARGE)
    if kernel == "marlin":
        sizes = (np.select([mean < 0.9 * size for size in MARLIN[:-1]], MARLIN[:-1], MARLIN[-1]),)
    return sizes, (LARGE / 2, LARGE, 2 * LARGE)


def mixture_work(
    device: Device, variant: str, hidden: Array, inner: Array, tokens: Array, active: Array, found: Loads,
    gates: Array = 2.0, warm: bool = False,
) -> Work:  # fmt: skip
    """The work of the experts of a layer: each token picks `active` ones; `gates` products into the inner width.

    vLLM's Triton and Marlin write, activate and add up the rows of all picks, those of experts on other devices too.
    """
    form, kernel = multiplied(device, variant), mixture_kernel(device, variant)
    tokens = real(tokens)
    picks = tokens * active
    sizes = {"hidden": real(hidden), "inner": real(inner), "tokens": tokens}
    share = EARLIER.get(device.architecture, 1.0) if kernel == "marlin" else 1.0
    units = device.peak(form.units)
    known = {"left": form.left, "right": form.right, "peak": units * share, "units": units, "warm": warm}
    tiles = mixture_tiles(kernel, mixture_variant(device, variant), tokens, picks / found.experts)
    written = found.total if kernel == "cutlass" or variant.startswith("mxfp4_wo.") else picks
    copied = 0.0 if kernel != "cutlass" else COPIED.get(variant, 2 * form.left)
    rules = {"tiles": tiles, "written": written, "copied": copied, "striped": kernel == "marlin"}
    return {**sizes, **known, "gates": gates, "loads": found, **rules}
