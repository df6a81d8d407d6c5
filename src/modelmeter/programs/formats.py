"""Formats: how the elements of a tensor are stored, the table of `formats.yaml`.

A format is blocks of elements with their scales; bits an element follow. Which tensor has which format: `precision.py`
by role and name, `policies.py` by what a tensor is and in which layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.sizes import Expr, Size, anywhere, ratio, whole

ACTIVATIONS = "activations"
"""The engine multiplies in the format of the activations."""


@final
@dataclass(frozen=True)
class Format:
    """Rows of blocks, `block` elements in `bytes` bytes; besides `row` bytes a row and `matrix` bytes a matrix.

    `work` are the CUDA-core operations that take an element apart, `multiplied` is what the engine multiplies in,
    `fallback` what llama.cpp takes where the columns are no multiple of the block, `ggml` the number in its files.
    """

    name: str
    block: int
    bytes: Fraction
    row: int = 0
    matrix: int = 0
    work: Fraction = Fraction(0)
    multiplied: str = ACTIVATIONS
    fallback: str = ""
    ggml: int | None = None

    @property
    def bits(self) -> Fraction:
        """Bits an element of whole blocks, their scales among them."""
        return self.bytes * 8 / self.block

    @property
    def shaped(self) -> bool:
        """Whether bytes an element depend on the shape of a tensor, or a tensor may have none such."""
        return bool(self.block > 1 or self.row or self.matrix)

    def fits(self, columns: Size) -> bool:
        """Whether rows of so many elements are whole blocks (an expression may be)."""
        return isinstance(columns, Expr) or not anywhere(columns % self.block)

    def each(self, columns: Size, rows: Size = 1) -> Size:
        """Bytes an element of a matrix.

        >>> FORMATS["q4_k"].each(1024), FORMATS["int8_channel"].each(100, 7)
        (Fraction(9, 16), Fraction(51, 50))
        """
        found: Size = whole(self.bytes / self.block)
        if self.row:
            found = found + ratio(self.row, columns)
        return whole(found + ratio(self.matrix, columns * rows)) if self.matrix else whole(found)


def _sum(text: Any) -> Fraction:
    return sum((Fraction(part) for part in str(text).split()), start=Fraction(0))


@cache
def _table() -> dict[str, Format]:
    import yaml

    text = Path(__file__).with_name("formats.yaml").read_bytes()
    found: dict[str, Format] = {}
    for name, line in yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["formats"].items():
        also = line.pop("alias", "").split()
        size, work = Fraction(str(line.pop("bytes"))), _sum(line.pop("work", 0))
        found |= dict.fromkeys((name, *also), Format(name, bytes=size, work=work, **line))
    return found


FORMATS: dict[str, Format] = _table()
"""The formats by their names and by what else they are called."""
GGML: dict[int, Format] = {f.ggml: f for f in FORMATS.values() if f.ggml is not None}
"""Those of llama.cpp by their numbers."""


def format_of(key: str, value: Any) -> Format:
    """A format by its name ("bf16"), or one of so many bits an element (4.5). Raises InputError for anything else."""
    if isinstance(value, str):
        return FORMATS[choose(f"dtype for {key}", value, FORMATS)]
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)) or not 0 < value <= 64:
        raise InputError(f"{key} must be a dtype name or bits per element between 0 and 64, not {value!r}")
    bits = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    return Format(f"{value} bits", 1, bits / 8)
