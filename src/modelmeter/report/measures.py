"""What tables and figures show of a row: the only place where FLOPs and bytes become readable units.

MEASURES are drawn, COLUMNS are printed in Markdown. TFLOP = 1e12 FLOPs, GB = 1e9 bytes, Tb = 1e12 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A quantity of a row: `label` for an axis with its unit, `short` for a legend; None where it has no value."""

    label: str
    value: Callable[[Row], float | None]
    short: str = ""
    points: bool = False  # drawn as points, without a line: published figures


def _scaled(column: str, unit: float) -> Callable[[Row], float | None]:
    return lambda row: None if row.get(column, "") == "" else float(row[column]) / unit


def flops_of(row: Row) -> int:
    """The FLOPs of both engines."""
    return int(row["tensor_core_flops"] + row["cuda_core_flops"])


def grid_of(row: Row) -> str:
    """The crop grid of a row as rows x columns."""
    return f"{row['grid_h']}x{row['grid_w']}" if row["crops"] else "none"


_BY_ENGINE = "FLOPs by engine (TFLOP = 1e12)"
_SHARE = "share of the datasheet's figure (%)"

MEASURES: dict[str, Measure] = {
    "flops_tflops": Measure("FLOPs, tensor and CUDA cores (TFLOP = 1e12)", lambda row: flops_of(row) / 1e12),
    "tensor_tflops": Measure(_BY_ENGINE, _scaled("tensor_core_flops", 1e12), "tensor cores"),
    "cuda_tflops": Measure(_BY_ENGINE, _scaled("cuda_core_flops", 1e12), "CUDA cores"),
    "io_tb": Measure("traffic to and from memory (Tb = 1e12 bits)", _scaled("io_bytes", 1e12 / 8)),
    "io_gb": Measure("traffic to and from memory (GB = 1e9 bytes)", _scaled("io_bytes", 1e9)),
    "io_gb_per_token": Measure("traffic an output token (GB = 1e9 bytes)", _scaled("io_bytes_per_token", 1e9)),
    "arithmetic_intensity": Measure(
        "arithmetic intensity (FLOP per byte)", _scaled("arithmetic_intensity_flop_per_byte", 1)
    ),
    "activations_gb": Measure("peak activations (GB = 1e9 bytes)", _scaled("peak_activation_bytes", 1e9)),
    "kv_gb": Measure("KV cache at the end (GB = 1e9 bytes)", _scaled("kv_cache_bytes", 1e9)),
    "required_tflops_per_s": Measure("required rate (TFLOP/s)", _scaled("required_flops_per_s", 1e12)),
    "required_gb_per_s": Measure("required bandwidth (GB/s)", _scaled("required_bytes_per_s", 1e9)),
    "tensor_core_share": Measure(_SHARE, _scaled("tensor_core_share", 0.01), "tensor-core peak, dense bf16"),
    "cuda_core_share": Measure(_SHARE, _scaled("cuda_core_share", 0.01), "CUDA-core peak, fp32"),
    "memory_bandwidth_share": Measure(_SHARE, _scaled("memory_bandwidth_share", 0.01), "memory bandwidth"),
    "compression": Measure("text tokens per vision token", _scaled("compression", 1), "computed"),
    "published_compression": Measure(
        "text tokens per vision token", _scaled("published_compression", 1), "published", points=True
    ),
    "saved_prefill_tflops": Measure("prefill FLOPs saved (TFLOP = 1e12)", _scaled("saved_prefill_flops", 1e12)),
    "net_saved_tflops": Measure("FLOPs saved in all (TFLOP = 1e12)", _scaled("saved_flops_less_vision", 1e12)),
    "error_percent": Measure("published less real (%)", _scaled("error_percent", 1)),
    "saved_kv_gb": Measure("KV cache saved at the end (GB = 1e9 bytes)", _scaled("saved_kv_cache_bytes", 1e9)),
}

X_LABELS = {
    "image_tokens": "image tokens (grid of crops written rows x columns)",
    "prefill_tokens": "tokens of the prefill",
    "text_tokens": "text tokens of the page",
    "crops": "crops",
    "title": "document",
    "device": "device",
}

CURVES = {
    "execution": "{} execution",
    "budget_s": "{} s",
    "heads": "heads {}",
    "kv_heads": "KV heads {}",
    "batch": "batch {}",
    "decode_steps": "{} decode steps",
    "stage": "{}",
    "engine": "{} cores",
}
"""How the value of a column reads in a legend, where it is not the value alone."""


Column = tuple[str, tuple[str, Callable[[Row], str]]]


def _digits(column: str, heading: str, unit: float, digits: int) -> Column:
    def text(row: Row) -> str:
        return "" if row.get(column, "") == "" else significant(float(row[column]) / unit, digits)

    return column, (heading, text)


def _plain(column: str, heading: str = "") -> Column:
    def text(row: Row) -> str:
        value = row.get(column, "")
        return ("yes" if value else "no") if isinstance(value, bool) else str(value)

    return column, (heading or column, text)


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands apart, never with an exponent.

    >>> significant(1155.4), significant(2.1), significant(0.0000404), significant(-0.5, 2), significant(9.9996)
    ('1,155', '2.10', '0.0000404', '-0.50', '10.0')
    """
    value = float(value)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def _range(share: str, heading: str) -> Column:
    def text(row: Row) -> str:
        low, high = (significant(100 * row[f"{end}_{share}"]) for end in ("least", "largest"))
        return low if low == high else f"{low} - {high}"

    return f"largest_{share}", (heading, text)


COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = dict(
    (
        _plain("target"),
        _plain("budget_s", "budget s"),
        _plain("title", "document"),
        _plain("image_size", "pixels"),
        _plain("text_tokens", "text tokens"),
        _plain("mode"),
        _plain("crops"),
        ("grid_h", ("grid", grid_of)),
        _plain("vision_tokens", "vision tokens"),
        _plain("image_tokens", "image tokens"),
        _plain("prefill_tokens", "prefill tokens"),
        _plain("decode_steps", "decode steps"),
        _plain("batch"),
        _plain("heads"),
        _plain("kv_heads", "KV heads"),
        _plain("pages"),
        _plain("stage"),
        _plain("component"),
        _plain("execution"),
        _plain("device"),
        _digits("tensor_core_flops", "tensor-core TFLOP", 1e12, 7),
        _digits("cuda_core_flops", "CUDA-core TFLOP", 1e12, 7),
        _digits("io_bytes", "I/O GB", 1e9, 5),
        _digits("arithmetic_intensity_flop_per_byte", "FLOP/byte", 1, 4),
        _digits("peak_activation_bytes", "peak activations GB", 1e9, 5),
        _digits("kv_cache_bytes", "KV cache GB", 1e9, 5),
        _digits("tensor_core_flops_per_token", "tensor-core GFLOP a token", 1e9, 5),
        _digits("io_bytes_per_token", "I/O GB a token", 1e9, 5),
        _digits("required_flops_per_s", "required TFLOP/s", 1e12, 4),
        _digits("required_bytes_per_s", "required GB/s", 1e9, 4),
        _range("tensor_core_share", "% of bf16 tensor-core peak"),
        _range("cuda_core_share", "% of fp32 CUDA-core peak"),
        _range("memory_bandwidth_share", "% of bandwidth"),
        _plain("binds"),
        _plain("within_peaks", "grids within the peaks"),
        _plain("fits_memory", "grids that fit the memory"),
        _plain("source", "source (confidence)"),
        _digits("compression", "text per vision token", 1, 3),
        _plain("published_compression", "published"),
        _plain("published_precision_percent", "published precision %"),
        _digits("compression_in_decoder", "text per image token", 1, 3),
        _digits("text_prefill_flops", "prefill of the text, TFLOP", 1e12, 4),
        _digits("image_prefill_flops", "prefill of the picture, TFLOP", 1e12, 4),
        _digits("saved_prefill_flops", "saved, TFLOP", 1e12, 4),
        _digits("vision_flops", "vision tower, TFLOP", 1e12, 4),
        _digits("saved_flops_less_vision", "saved in all, TFLOP", 1e12, 4),
        _digits("saved_decode_io_bytes", "decode I/O saved, GB", 1e9, 4),
        _digits("saved_kv_cache_bytes", "KV cache saved, GB", 1e9, 4),
    )
)
"""What Markdown prints of a table, in this order: heading and text by column."""


def notes_of(row: Row) -> list[str]:
    """What marks a row out: the user's own page, extrapolation, a context beyond the model's positions."""
    notes = ["**this page**"] if row.get("marked") else []
    notes += ["extrapolated"] if row.get("extrapolated") else []
    notes += ["beyond the model's positions"] if row.get("beyond_positions") else []
    measured = row.get("reference_tensor_core_flops")
    if measured is not None:
        notes.append(f"reference {measured - row['tensor_core_flops']:+d} FLOPs")
    return notes
