"""Reads a profiler's record, whichever of the known kinds the file is, which its content tells."""

from __future__ import annotations

from pathlib import Path

from modelmeter.errors import InputError
from modelmeter.profiled import chrome, nsys
from modelmeter.profiled.recorded import Recorded


def read(path: str | Path) -> Recorded:
    """What a file of torch.profiler or Nsight Systems recorded. Raises InputError for any other."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            begins = file.read(4096)
    except OSError as error:
        raise InputError(f"trace {str(path)!r} cannot be read: {error.strerror}") from None
    if not begins.strip():
        raise InputError(f"trace {str(path)!r} is empty; export it again")
    if begins.startswith(b"SQLite format 3\x00"):
        return nsys.read_sqlite(path)
    if path.suffix in (".nsys-rep", ".qdrep"):
        raise InputError(f"{str(path)!r} is Nsight Systems' own format: {nsys.EXPORT}")
    if begins[:2] == b"\x1f\x8b" or begins.lstrip()[:1] in (b"{", b"["):
        return chrome.read(path)
    return nsys.read_csv(path)
