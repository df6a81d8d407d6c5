"""GGUF files in parts, NAME-00001-of-00003.gguf: read as one from any of them, and where a file would be cut.

The first part has the metadata, each has its number, how many there are and how many tensors all have. Source:
tools/gguf-split of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modelmeter.checkpoints.gguf import file_bytes, metadata_bytes, padded, read_gguf
from modelmeter.checkpoints.header import FileTensor, Header
from modelmeter.errors import InputError

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})\.gguf")
_KEYS_BYTES = metadata_bytes([(NUMBER, 0), (COUNT, 0), (TENSORS, 0)]) - 2 * 2
"""Bytes of the keys of a part, two of whose numbers have 16 bits."""


def read_parts(path: Path) -> Header:
    """The header of a GGUF file, of one in parts that of all. Raises InputError for parts that are missing or lie."""
    header = read_gguf(path)
    many = header.metadata.get(COUNT, 0)
    if many in (0, 1) and not isinstance(many, bool):
        return header
    if not isinstance(many, int) or many < 0:
        raise InputError(f"{str(path)!r}: key {COUNT!r} must be how many parts there are, not {many!r:.80}")
    named = _NAME.fullmatch(path.name)
    if named is None or int(named[3]) != many:
        raise InputError(
            f"{str(path)!r} is one of {many} parts, so its name must end in -00001-of-{many:05}.gguf or so"
        )
    beside = [path.with_name(f"{named[1]}-{i + 1:05}-of-{many:05}.gguf") for i in range(many)]
    missing = [i + 1 for i, part in enumerate(beside) if not part.is_file()]
    if missing:
        others = f", and so are {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(
            f"{str(path)!r}: part {missing[0]} of {many} is missing, {beside[missing[0] - 1].name!r}{others}"
        )
    return _together([read_gguf(part) for part in beside])


def _together(parts: list[Header]) -> Header:
    """Parts as one file."""
    total, found = parts[0].metadata.get(TENSORS), dict[str, FileTensor]()
    for i, part in enumerate(parts):
        for key, wanted in ((NUMBER, i), (COUNT, len(parts)), (TENSORS, total)):
            value = part.metadata.get(key)
            if value != wanted or not isinstance(value, int) or isinstance(value, bool):
                raise InputError(
                    f"{part.path!r}: key {key!r} is {value!r:.80}, but of this part it must be {wanted!r:.80}"
                )
        for name in found.keys() & part.tensors.keys():
            raise InputError(f"{part.path!r}: tensor {name!r} is in another part too")
        found |= part.tensors
    if len(found) != total:
        raise InputError(f"{parts[0].path!r}: its parts have {len(found)} tensors, but {TENSORS!r} is {total!r:.80}")
    sums = (sum(getattr(p, key) for p in parts) for key in ("file_bytes", "metadata_bytes", "entry_bytes"))
    size, told, entries = sums
    return replace(parts[0], tensors=found, file_bytes=size, metadata_bytes=told, entry_bytes=entries)


def parts_bytes(tensors: Iterable[FileTensor], metadata: int, most: int) -> list[tuple[int, int]]:
    """The tensors and the bytes of each part of at most so many bytes of tensors; one that alone has more stands alone.

    >>> from modelmeter.programs.formats import FORMATS
    >>> one = FileTensor("x", (64,), FORMATS["fp16"], 128)
    >>> parts_bytes([one, one, one], 0, 256)
    [(2, 448), (1, 288)]
    """
    parts: list[list[FileTensor]] = [[]]
    for tensor in tensors:
        if parts[-1] and sum(padded(t.bytes) for t in (*parts[-1], tensor)) > most:
            parts.append([])
        parts[-1].append(tensor)
    keys = (_KEYS_BYTES + metadata * (not i) for i in range(len(parts)))
    return [(len(part), file_bytes(part, many)[1]) for part, many in zip(parts, keys, strict=True)]
