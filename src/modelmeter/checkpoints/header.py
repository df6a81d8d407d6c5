"""What the header of a file of weights says, and a reader that believes no length which the file cannot hold.

Tensor data are never read. Next: `gguf.py`, `safetensors.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from modelmeter.errors import InputError
from modelmeter.programs.formats import Format


class FileTensor(NamedTuple):
    """A tensor of a file: its shape with the columns first, its format, its bytes."""

    name: str
    shape: tuple[int, ...]
    format: Format
    bytes: int

    @property
    def elements(self) -> int:
        """Elements in all."""
        return prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A file's tensors by name and its metadata; `kind` is gguf or safetensors, `file_bytes` its size.

    `metadata_bytes` are those of the metadata's pairs, `entry_bytes` those of the list of tensors.
    """

    path: str
    kind: str
    tensors: Mapping[str, FileTensor]
    file_bytes: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    metadata_bytes: int = 0
    entry_bytes: int = 0


class Bytes:
    """A file read from its beginning. Raises InputError where it is too short for what is asked."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            self._file = path.open("rb")
            self.size = path.stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None

    def __enter__(self) -> Bytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def wrong(self, sentence: str) -> InputError:
        """An error that names the file."""
        return InputError(f"{str(self.path)!r}: {sentence}")

    def require(self, many: int, what: str) -> None:
        """Raise InputError unless so many bytes are left."""
        if many > self.size - self.at:
            left = self.size - self.at
            raise self.wrong(f"{what} needs {many} bytes at {self.at}, and {left} are left: it is cut short or damaged")

    def take(self, many: int, what: str) -> bytes:
        """The next bytes."""
        self.require(many, what)
        self.at += many
        return self._file.read(many)

    def skip(self, many: int, what: str) -> None:
        """Leave out the next bytes."""
        self.require(many, what)
        self.at += many
        self._file.seek(self.at)

    def number(self, form: str, what: str) -> Any:
        """The next number, by its letter in Python's struct, little-endian."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))[0]

    def text(self, what: str) -> str:
        """The next string: its length, then UTF-8."""
        try:
            return self.take(self.number("Q", what), what).decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is no UTF-8") from None
