"""llama.cpp loads generated files (tests/llama_files.py) and reports what it allocates.

Beside it stands what `modelmeter.checkpoints.llama_cpp` says. Needs the extra `engines`; takes about a minute.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from llama_engine import Report, load
from llama_files import QUESTIONS, caches, made, mib, words
from llama_files import write as write_file
from page import both, write

from modelmeter.checkpoints.llama_cpp import Buffers, buffers

HEADS = ("decoder", "weights", "options", "weights MiB", "cache MiB", "compute MiB", "nodes", "differs")


def ask() -> str:
    """Ask, and write docs/engines.md below its mark."""
    with TemporaryDirectory() as folder:
        rows = list(_rows(Path(folder)))
    equal = sum(row[-1] == "" for row in rows)
    summary = (
        f"llama.cpp as of the package xllamacpp {version('xllamacpp')}: {len(rows)} checks, {equal} equal in every "
        "figure. Where they differ the engine's figure comes first, ours second."
    )
    write("engines.md", summary, HEADS, rows, numbers=4)
    return f"{len(rows)} checks, {equal} equal"


def _rows(folder: Path) -> Iterator[list[str]]:
    files: dict[tuple[str, str], Path] = {}
    for name, (policy, context, ubatch, options) in QUESTIONS:
        path = files.get((name, policy)) or files.setdefault((name, policy), write_file(folder, name, policy))
        report = load(path, n_ctx=context, n_batch=4096, n_ubatch=ubatch, **words(options))
        cells = list(_cells(report, buffers(made(name), policy, context, ubatch, **options)))
        told = {"n_ctx": context, "n_ubatch": ubatch} | {f"{key}": value for key, value in words(options).items()}
        reason = "unexplained" if any("/" in cell for cell in cells) else ""
        yield [name, policy, " ".join(f"{key}={value}" for key, value in told.items()), *cells, reason]


def _cells(report: Report, ours: Buffers) -> Iterator[str]:
    plain = next(size for name, size in report.model.items() if name != "CPU_REPACK")
    again = report.model.get("CPU_REPACK", "0.00")
    yield both(" + ".join((plain, again)), " + ".join((mib(ours.model), mib(ours.repacked)))).replace(" + 0.00", "")
    yield both(report.kv, caches(ours))
    yield both(report.compute, mib(ours.compute))
    yield both(str(report.nodes), str(ours.nodes))
