"""GGUF files: their header read, and the bytes that one has. Layout: gguf.md of the ggml repository, version 3."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.checkpoints.header import Bytes, FileTensor, Header
from modelmeter.errors import InputError
from modelmeter.programs.formats import GGML

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
FIXED_BYTES = 24
"""Magic, version, numbers of tensors and of pairs."""
MOST_AXES = 4
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Kinds of numbers by their letters in Python's struct; 7 is a truth value."""
STRING, LIST = 8, 9
KEPT = 4096
"""Numbers of a list that are kept; of a longer one, such as scores of tokens, its length."""


class Listed(NamedTuple):
    """A list in the metadata of which the length alone is kept."""

    length: int


def entry_bytes(name: str, axes: int) -> int:
    """Bytes of a tensor in the list of tensors: its name, axes, format and offset."""
    return 8 + len(name.encode()) + 4 + 8 * axes + 4 + 8


def padded(many: int, alignment: int = ALIGNMENT) -> int:
    """Bytes with the padding behind them.

    >>> padded(33), padded(64)
    (64, 64)
    """
    return -(-many // alignment) * alignment


def file_bytes(tensors: Iterable[FileTensor], metadata_bytes: int) -> tuple[int, int]:
    """The bytes of a file's header, padding included, and of the whole file."""
    given = list(tensors)
    header = padded(FIXED_BYTES + metadata_bytes + sum(entry_bytes(t.name, len(t.shape)) for t in given))
    return header, header + sum(padded(t.bytes) for t in given)


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file. Raises InputError, naming file and key or tensor, for one that is cut short or lies."""
    with Bytes(path) as file:
        if file.take(4, "the magic number") != MAGIC:
            raise file.wrong("it is no GGUF file: it does not begin with GGUF")
        version = file.number("I", "the version")
        if version not in VERSIONS:
            raise file.wrong(f"GGUF version {version} is not supported; versions: 2, 3, little-endian")
        tensors, pairs = file.number("Q", "the number of tensors"), file.number("Q", "the number of keys")
        file.require(tensors * entry_bytes("", 0) + pairs * 13, f"a list of {tensors} tensors and {pairs} keys")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = file.text(f"the key after {next(reversed(metadata), 'none')!r}")
            if key in metadata:
                raise file.wrong(f"key {key!r} is there twice")
            metadata[key] = _value(file, file.number("I", f"key {key!r}"), f"key {key!r}")
        begin = file.at
        offsets: dict[str, tuple[FileTensor, int]] = {}
        for _ in range(tensors):
            tensor, offset = _tensor(file, next(reversed(offsets), "none"))
            if tensor.name in offsets:
                raise file.wrong(f"tensor {tensor.name!r} is there twice")
            offsets[tensor.name] = tensor, offset
        _require_data(file, offsets.values(), metadata.get("general.alignment", ALIGNMENT))
        found = {name: tensor for name, (tensor, _) in offsets.items()}
        return Header(str(path), "gguf", found, file.size, metadata, begin - FIXED_BYTES, file.at - begin)


def _value(file: Bytes, kind: int, what: str) -> Any:
    """A value of the metadata."""
    if kind in SCALARS:
        number = file.number(SCALARS[kind], what)
        return bool(number) if kind == 7 else number
    if kind == STRING:
        return file.text(what)
    if kind != LIST:
        raise file.wrong(f"{what} is of a kind {kind} that GGUF has not")
    inner, length = file.number("I", what), file.number("Q", what)
    if inner == STRING:
        file.require(8 * length, f"{what}, a list of {length} strings,")
        for _ in range(length):
            file.skip(file.number("Q", what), what)
        return Listed(length)
    if inner not in SCALARS:
        raise file.wrong(f"{what} is a list of a kind {inner} that is not supported")
    size = struct.calcsize(f"<{SCALARS[inner]}")
    if length > KEPT:
        file.skip(size * length, f"{what}, a list of {length} numbers,")
        return Listed(length)
    return list(struct.unpack(f"<{length}{SCALARS[inner]}", file.take(size * length, what)))


def _tensor(file: Bytes, before: str) -> tuple[FileTensor, int]:
    """A tensor of the list and where its data begin."""
    name = file.text(f"the name of the tensor after {before!r}")
    what = f"tensor {name!r}"
    axes = file.number("I", what)
    if not 1 <= axes <= MOST_AXES:
        raise file.wrong(f"{what} has {axes} axes, not 1 to {MOST_AXES}")
    shape = tuple(file.number("Q", what) for _ in range(axes))
    kind, offset = file.number("I", what), file.number("Q", what)
    if kind not in GGML:
        valid = ", ".join(f.name for f in GGML.values())
        raise file.wrong(f"{what} has format number {kind}, which is none of: {valid}")
    form = GGML[kind]
    if 0 in shape or not form.fits(shape[0]):
        raise file.wrong(f"{what} is {list(shape)} in {form.name}, whose rows are blocks of {form.block}")
    tensor = FileTensor(name, shape, form, 0)
    return tensor._replace(bytes=int(tensor.elements * form.bytes / form.block)), offset


def _require_data(file: Bytes, tensors: Iterable[tuple[FileTensor, int]], alignment: Any) -> None:
    """Raise InputError unless each tensor has bytes of its own in the file."""
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise file.wrong(f"key 'general.alignment' must be a power of 2 of at least 8, not {alignment!r}")
    begin, following = padded(file.at, alignment), 0
    for tensor, offset in sorted(tensors, key=lambda pair: pair[1]):
        end = begin + offset + tensor.bytes
        if offset % alignment or offset < following:
            raise file.wrong(f"tensor {tensor.name!r} begins at {offset}, inside another or out of line")
        if end > file.size:
            raise file.wrong(f"tensor {tensor.name!r} ends at {end}, and the file at {file.size}: it is cut short")
        following = offset + tensor.bytes


def metadata_bytes(pairs: Iterable[tuple[str, Any]]) -> int:
    """Bytes of pairs of metadata, whole numbers in 32 bits as files have them.

    Raises InputError for a value that is neither number, string, truth value nor list of these.

    >>> metadata_bytes([("general.architecture", "llama"), ("llama.block_count", 2)])
    78
    """
    return sum(8 + len(key.encode()) + 4 + _value_bytes(key, value) for key, value in pairs)


def _value_bytes(key: str, value: Any) -> int:
    if isinstance(value, str):
        return 8 + len(value.encode())
    if isinstance(value, (list, tuple)):
        return 4 + 8 + sum(_value_bytes(key, inner) for inner in value)
    if isinstance(value, bool):
        return 1
    if isinstance(value, (int, float)):
        return 4
    raise InputError(f"key {key!r} must be a number, a string, true or false, or a list of these, not {value!r}")
