"""Measured kernels: the Parquet files of NVIDIA's open kernel database as arrays of work, by law, device and variant.

The data is not part of the package: `read` takes a folder that holds it. Rows that no law covers are counted, never
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.seconds.laws import Work
from modelmeter.seconds.mixture import Loads, loads
from modelmeter.seconds.shapes import attention_work, mixture_variant, mixture_work, multiplied, product_work

DEVICES = {"a100_sxm": "a100_80gb", "a100_pcie": "a100_80gb_pcie", "b60": "arc_pro_b60", "gb200_sxm": "gb200"}
"""Devices of the catalogue by their names in the data, where these differ."""
FORMATS = {"bfloat16": "bf16", "w4a16_mxfp4": "mxfp4_wo", "nvfp4": "nvfp4", "int4_wo": "int4_wo"}
"""Formats by their names in the data, where these differ."""
FOLDS = 5
EARLY = "vllm_fused_moe"
"""The mixtures of an older vLLM (0.14): another rule for the rows of a tile, and always a gate."""
NEMOTRON = 22, 2688
"""Active experts and hidden width of two Nemotron models: without a gate, and vLLM 0.24 measured them so."""
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """Kernels of one law, device and variant: their work, seconds, what a roofline says, a hash of each shape."""

    law: str
    device: Device
    variant: str
    work: Work
    seconds: Any
    roofline: Any
    shape: Any

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def held(self) -> Any:
        """Which rows are left out of a fit: one shape in five, by its hash."""
        return self.shape % FOLDS == 0

    def where(self, kept: Any) -> Measured:
        """The rows that a mask keeps."""
        work = {name: _kept(value, kept, len(self)) for name, value in self.work.items()}
        arrays = (getattr(self, name)[kept] for name in ("seconds", "roofline", "shape"))
        return Measured(self.law, self.device, self.variant, work, *arrays)


def _kept(value: Any, kept: Any, count: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_kept(of, kept, count) for of in value)
    if isinstance(value, Loads):
        return value.where(kept)
    return value[kept] if np.shape(value)[:1] == (count,) else value


def read(folder: str | Path, devices: Mapping[str, Device], left: list[str] | None = None) -> list[Measured]:
    """Every kernel of the files in a folder, as groups; `devices` are those of the catalogue by name.

    What no device or law stands for is told in `left`, with the number of its rows; without a list it is refused.
    Raises InputError for a folder that holds none of the files, and for a file of other columns.
    """
    found = [path for name in KINDS if (path := Path(folder) / f"{name}.parquet").is_file()]
    if not found:
        raise InputError(
            f"{folder} holds none of the measured kernels: {', '.join(f'{name}.parquet' for name in KINDS)}"
        )
    return [group for path in found for group in _groups(path, devices, left)]


def _groups(path: Path, devices: Mapping[str, Device], left: list[str] | None) -> Iterator[Measured]:
    law, names, work_of = KINDS[path.stem]
    columns = _columns(path, ("device", "latency_ms", "kernel_source", *names))
    label = _variants(path.stem, columns)
    for device, variant in dict.fromkeys(zip(columns["device"], label, strict=True)):
        chosen = (columns["device"] == device) & (label == variant)
        own = {name: value[chosen] for name, value in columns.items()}
        try:
            if (chip := devices.get(DEVICES.get(device, device))) is None:
                raise InputError("no device of the catalogue is called so")
            work, roofline = work_of(chip, variant, own)
        except InputError as error:
            if left is None:
                raise InputError(f"{path.name}: {error}") from None
            left.append(f"{path.name}, {device}, {variant}: {chosen.sum():,} rows: {error}")
            continue
        told = mixture_variant(chip, variant) if law == "mixture" else variant
        yield Measured(law, chip, told, work, own["latency_ms"].astype(float) / 1e3, roofline, _hash(own, names))


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError("reading Parquet files needs pyarrow: pip install 'modelmeter[parquet]'") from None
    table = parquet.read_table(path)
    for name in (name for name in names if name not in table.column_names):
        raise InputError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in names}


def _hash(columns: Columns, names: tuple[str, ...]) -> Any:
    """A number a shape, the same whatever the device, the format and the engine's kernel."""
    primes = (73856093, 19349663, 83492791, 15485863, 32452843, 49979687, 86028121, 2038074743, 982451653)
    mixed = np.zeros(len(columns["device"]), np.int64)
    for name, prime in zip((n for n in names if columns[n].dtype != object), primes, strict=False):
        mixed ^= np.nan_to_num(columns[name].astype(float)).astype(np.int64) * prime
    return (mixed ^ (mixed >> 17)) % 1000003


def _variants(kind: str, columns: Columns) -> Any:
    """The variant of each row: its format, and the engine's kernel where a format has several."""
    form = columns.get({"gemm": "gemm_dtype", "moe": "moe_dtype", "allreduce": "backend"}.get(kind, "kv_cache_dtype"))
    if form is None:
        return np.full(len(columns["device"]), "bf16", dtype=object)
    known = FORMATS | {"vllm_graph": "graph", "vllm_eager": "eager"}
    label = np.array([known.get(name, name) for name in form], dtype=object)
    for word, told in KERNELS:
        for of in told[1]:
            chosen = (label == of) & np.array([word in source.lower() for source in columns["kernel_source"]])
            label[chosen] = f"{of}.{told[0]}"
    return label


KERNELS = (
    ("cutlassfp8block", ("cutlass", ("fp8_block",))),
    ("deepgemm", ("deepgemm", ("fp8_block",))),
    ("flashinferfp8block", ("flashinfer", ("fp8_block",))),
    ("triton_attn", ("triton", ("fp8",))),
    ("flash_attn_fa3", ("fa3", ("fp8",))),
    ("flashinfer_fi", ("flashinfer", ("fp8",))),
    ("fa4", ("fa4", ("bf16",))),
    ("fp8moe_triton", ("triton", ("fp8_block",))),
    ("triton_oai", ("triton", ("mxfp4_wo",))),
)
"""Words in `kernel_source` that tell one kernel of a format from another."""


def _product(chip: Device, variant: str, c: Columns) -> tuple[Work, Any]:
    work = product_work(chip, variant, c["m"], c["n"], c["k"], warm=True)
    m, n, k = (np.asarray(work[x]) for x in "mnk")
    moved = m * k * work["left"] + n * k * work["right"] + 2 * m * n
    return work, _roof(chip, 2 * m * n * k / work["peak"], moved)


def _roof(chip: Device, compute: Any, moved: Any) -> Any:
    return np.maximum(compute, moved / chip.memory_bytes_per_s)


def _attention(law: str) -> Callable[[Device, str, Columns], tuple[Work, Any]]:
    def work_of(chip: Device, variant: str, c: Columns) -> tuple[Work, Any]:
        own = c["step"].astype(float) if "step" in c else 0.0
        s = c["isl"].astype(float)
        window = np.nan_to_num(c["window_size"].astype(float)) if "window_size" in c else 0 * s
        heads = c["num_heads"], c.get("num_key_value_heads", c["num_heads"])
        work = attention_work(
            chip, law, variant, c["batch_size"], *heads, c["head_dim"], s, s + own, window=window, warm=True
        )
        b, h, g, e, s, t = (np.asarray(work[x], float) for x in ("batch", "heads", "kv_heads", "width", "s", "t"))
        keys = np.where(window > 0, np.minimum(window, t), t)
        pairs = s * keys if law != "prefill" else np.where(window > 0, s * keys - keys * keys / 2, s * t - s * s / 2)
        moved = 4 * b * s * h * e + 2 * b * np.minimum(t, keys + s) * g * e * work["kv_bytes"]
        return work, _roof(chip, 4 * b * h * e * pairs / work["peak"], moved)

    return work_of


def _mixture(chip: Device, variant: str, c: Columns) -> tuple[Work, Any]:
    tokens, k, experts, parts, d = (
        c[x].astype(float) for x in ("num_tokens", "topk", "num_experts", "moe_ep_size", "hidden_size")
    )
    alpha = np.array([float(name.rpartition("_")[2]) if "power" in name else 0.0 for name in c["distribution"]])
    found = loads(tokens, k, experts, parts, alpha)
    inner = c["inter_size"] / c["moe_tp_size"].astype(float)
    early = np.array([source == EARLY for source in c["kernel_source"]])
    gates = np.where(~early & ((k == NEMOTRON[0]) | (d == NEMOTRON[1])), 1.0, 2.0)
    work = mixture_work(chip, variant, d, inner, tokens, k, found, gates, warm=True)
    if early.all():
        work = {**work, "tiles": ((np.where(tokens <= found.experts, 16.0, 64.0),), (64.0,))}
    weights = (gates + 1) * d * inner
    compute = 2 * weights * found.total / chip.peak(multiplied(chip, variant).units)
    return work, _roof(chip, compute, weights * found.reached * work["right"] + 4 * found.total * d)


def _allreduce(chip: Device, variant: str, c: Columns) -> tuple[Work, Any]:
    count, moved = c["num_gpus"].astype(float), 2.0 * c["message_size"]
    work = {"devices": count, "bytes": moved, "warm": True}
    return work, 2 * (count - 1) / count * moved / chip.need("link_bytes_per_s")


_HEADS = ("batch_size", "isl", "num_heads", "head_dim")
_CACHE = ("num_key_value_heads", "kv_cache_dtype", "step", "window_size")
KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[Device, str, Columns], tuple[Work, Any]]]] = {
    "gemm": ("product", ("m", "n", "k", "gemm_dtype"), _product),
    "context_attention": ("prefill", (*_HEADS, *_CACHE), _attention("prefill")),
    "generation_attention": ("decode", (*_HEADS, *_CACHE), _attention("decode")),
    "encoder_attention": ("vision", _HEADS, _attention("vision")),
    "moe": (
        "mixture",
        (
            "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
            "distribution", "moe_dtype",
        ),
        _mixture,
    ),
    "allreduce": ("allreduce", ("num_gpus", "message_size", "backend"), _allreduce),
}  # fmt: skip
"""Files by name: the law that they measure, the columns that make a shape, how a row becomes work."""
