"""Headers of safetensors files, one or several of an index. Layout: the README of huggingface/safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelmeter.checkpoints.header import Bytes, FileTensor, Header
from modelmeter.errors import InputError
from modelmeter.programs.formats import FORMATS

MOST_BYTES = 100_000_000
"""The longest header that the layout allows."""
INDEX = ".safetensors.index.json"


def read_safetensors(path: Path) -> Header:
    """The header of a safetensors file. Raises InputError, naming file and tensor, for one that is cut short or lies."""
    with Bytes(path) as file:
        length = file.number("Q", "the length of the header")
        if length > MOST_BYTES:
            raise file.wrong(f"a header of {length} bytes is longer than the {MOST_BYTES} that are allowed")
        fields = _fields(path, file.take(length, "the header"))
        metadata = fields.pop("__metadata__", {})
        if not isinstance(metadata, Mapping):
            raise file.wrong(f"__metadata__ must hold names and words, not {metadata!r:.80}")
        begin, end, found = file.at, 0, dict[str, FileTensor]()
        spans = [(_span(file, name, told), name, told) for name, told in fields.items()]
        for (first, last), name, told in sorted(spans, key=lambda span: span[0]):
            if first != end or begin + last > file.size:
                raise file.wrong(
                    f"tensor {name!r} has the bytes {first} to {last}, which overlap, gape or are not there"
                )
            found[name], end = _tensor(file, name, told, last - first), last
        if begin + end != file.size:
            raise file.wrong(f"its tensors end at {begin + end}, and the file at {file.size}")
        return Header(str(path), "safetensors", found, file.size, metadata, 0, begin)


def _fields(path: Path, text: bytes) -> dict[str, Any]:
    """The fields of a JSON object, each once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        fields = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r}: its header is no JSON: {str(error)[:80]}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{str(path)!r}: its header must hold tensors by name, not a {type(fields).__name__}")
    return fields


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _span(file: Bytes, name: str, told: Any) -> tuple[int, int]:
    """Where the data of a tensor begin and end."""
    offsets = told.get("data_offsets") if isinstance(told, Mapping) else None
    if not isinstance(offsets, list) or not _wholes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise file.wrong(f"tensor {name!r} must have data_offsets [first, last], not {offsets!r:.80}")
    return offsets[0], offsets[1]


def _tensor(file: Bytes, name: str, told: Mapping[str, Any], many: int) -> FileTensor:
    """A tensor, its shape with the columns first."""
    kind, shape = told.get("dtype"), told.get("shape")
    if not isinstance(kind, str) or kind.lower() not in FORMATS:
        raise file.wrong(f"tensor {name!r} has dtype {kind!r:.80}, which is not supported")
    if not isinstance(shape, list) or not _wholes(shape):
        raise file.wrong(f"tensor {name!r} must have a shape of whole numbers, not {shape!r:.80}")
    tensor = FileTensor(name, tuple(reversed(shape)), FORMATS[kind.lower()], many)
    if tensor.elements * tensor.format.bytes != many:
        raise file.wrong(f"tensor {name!r} of {shape!r:.80} in {kind} has {many} bytes, which is not that many")
    return tensor


def read_index(path: Path) -> Header:
    """The headers of all files of a model.safetensors.index.json, as one. Raises InputError where they disagree."""
    try:
        fields = _fields(path, path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    where = fields.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{str(path)!r}: weight_map must hold the file of each tensor")
    headers = {name: _shard(path, name) for name in dict.fromkeys(map(str, where.values()))}
    found = {name: tensor for header in headers.values() for name, tensor in header.tensors.items()}
    for name in where.keys() | found.keys():
        if name not in where or name not in headers[str(where[name])].tensors:
            raise InputError(f"{str(path)!r}: tensor {name!r} is not where the index says")
    size = sum(header.file_bytes for header in headers.values())
    return Header(str(path), "safetensors", found, size, entry_bytes=sum(h.entry_bytes for h in headers.values()))


def _shard(path: Path, name: str) -> Header:
    if Path(name).name != name:
        raise InputError(f"{str(path)!r}: {name!r:.80} is no file beside the index")
    return read_safetensors(path.parent / name)
