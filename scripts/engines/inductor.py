"""inductor, the compiler behind torch.compile, writes code for modules, which is read (tests/inductor_engine.py).

Beside it stand the kernels of the runtime `compile`. Needs the extra `validate`; takes about ten minutes.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from inductor_checks import HELD_OUT, KEPT, QUESTIONS, REASONS, Part, Question, answered, functions, theirs
from page import both, write

HEADS = ("module", "call", "kernels", "calls", "reordered", "bytes of loops", "peak bytes", "differs")
Answer = Callable[[Question | Part], tuple[Any, Any]]


def ask(answer: Answer = answered) -> str:
    """Ask, and write docs/engine-inductor.md below its mark."""
    rows = [row for held, questions in ((False, QUESTIONS), (True, HELD_OUT)) for row in _rows(questions, held, answer)]
    equal = sum(row[-1] == "" for row in rows)
    torch = version("torch").partition("+")[0]
    summary = (
        f"torch {torch}, transformers {version('transformers')}: {len(rows)} checks, {equal} equal in every kernel and "
        "figure. Where they differ inductor's figure comes first, ours second. Modules with a star were held back "
        "until the rules stood."
    )
    write("engine-inductor.md", summary, HEADS, rows, numbers=5)
    return f"{len(rows)} checks, {equal} equal"


def _rows(questions: list[Question | Part], held: bool, answer: Answer) -> Iterator[list[str]]:
    for question in questions:
        report, ours = answer(question)
        a, b = theirs(report), ours.kernels()
        cells = [
            both(str(len(a)), str(len(b))), both(str(len(report.calls)), str(functions(b))), str(report.reordered),
            *(both(*(str(sum(k.read_bytes + k.written_bytes for k in side)) for side in (a, b))),),
            both(str(report.peak), str(ours.peak())),
        ]  # fmt: skip
        name = question.kind if isinstance(question, Question) else question.name
        yield [name + " *" * held, str(question), *cells, _reason(name, a, b, report.peak - ours.peak())]


def _reason(name: str, a: list[Any], b: list[Any], more: int) -> str:
    """Why two sides differ, if they do."""
    if sorted(a) != sorted(b) or functions(a) != functions(b):
        return REASONS.get(name, "unexplained")
    return "" if more == 0 else KEPT if more > 0 else "unexplained"
