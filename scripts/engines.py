"""Asks the engines and writes docs/engines.md: python scripts/engines.py

llama.cpp loads generated files (tests/llama_files.py) and reports what it allocates; beside it stands what
`modelmeter.checkpoints.llama_cpp` says. Needs the extra `engines`; takes about a minute.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, "tests")

from llama_engine import Report, load
from llama_files import QUESTIONS, REASONS, made, mib, words, write

from modelmeter.checkpoints.llama_cpp import Buffers, buffers

PAGE = Path("docs/engines.md")
MARK = "<!-- below: written by scripts/engines.py -->"
HEADS = ("decoder", "weights", "options", "weights MiB", "cache MiB", "compute MiB", "nodes", "differs")


def main() -> None:
    """Ask, and write what is below the mark."""
    with TemporaryDirectory() as folder:
        found = list(_rows(Path(folder)))
    equal = sum(row[-1] == "" for row in found)
    lines = [
        f"llama.cpp as of the package xllamacpp {version('xllamacpp')}: {len(found)} checks, {equal} equal in every "
        "figure. Where they differ the engine's figure comes first, ours second.",
        "",
        _line(HEADS),
        _line(["---"] * 3 + ["--:"] * 4 + ["---"]),
        *map(_line, found),
    ]
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text("\n".join([above + MARK, "", *lines, ""]), encoding="utf-8")
    print(f"{len(found)} checks, {equal} equal")


def _rows(folder: Path) -> Iterator[list[str]]:
    files: dict[tuple[str, str], Path] = {}
    for name, (policy, context, ubatch, options) in QUESTIONS:
        path = files.get((name, policy)) or files.setdefault((name, policy), write(folder, name, policy))
        report = load(path, n_ctx=context, n_batch=4096, n_ubatch=ubatch, **words(options))
        cells = list(_cells(report, buffers(made(name), policy, context, ubatch, **options)))
        told = {"n_ctx": context, "n_ubatch": ubatch} | {f"{key}": value for key, value in words(options).items()}
        reason = REASONS.get(name, "unexplained") if any("/" in cell for cell in cells) else ""
        yield [name, policy, " ".join(f"{key}={value}" for key, value in told.items()), *cells, reason]


def _cells(report: Report, ours: Buffers) -> Iterator[str]:
    plain = next(size for name, size in report.model.items() if name != "CPU_REPACK")
    again = report.model.get("CPU_REPACK", "0.00")
    yield _both(" + ".join((plain, again)), " + ".join((mib(ours.model), mib(ours.repacked)))).replace(" + 0.00", "")
    yield _both(report.kv, mib(ours.kv))
    yield _both(report.compute, mib(ours.compute))
    yield _both(str(report.nodes), str(ours.nodes))


def _both(theirs: str, ours: str) -> str:
    return theirs if theirs == ours else f"{theirs} / {ours}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
