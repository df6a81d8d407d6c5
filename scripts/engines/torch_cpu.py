"""PyTorch runs small models on the CPU (tests/torch_subjects.py), beside the runtimes `eager` and `sdpa`.

Kernels that a dispatch mode sees, operators and blocks of memory that torch.profiler records. Takes two minutes.
"""

from collections import Counter
from collections.abc import Iterator

import torch
import transformers
from page import both, write
from torch_subjects import REASONS, Asked, questions
from torch_subjects import ask as asked

HEADS = (
    "model", "attention", "sequences, tokens, past", "kernels", "bytes read", "bytes written", "held at most",
    "of it room inside operators", "differs",
)  # fmt: skip


def ask_all() -> Iterator[tuple[str, str, str, Asked]]:
    for name, attention, call, make in questions():
        yield name, attention, ", ".join(map(str, call)), asked(make())


def ask() -> str:
    """Ask, and write docs/engine-torch.md below its mark."""
    torch.set_num_threads(1)
    found = list(ask_all())
    rows = [list(_row(*one)) for one in found]
    inside: Counter[str] = Counter()
    for *_, one in found:
        inside.update({f"`{by}`: `{name}`": many for (by, name), many in one.inside.items()})
    kernels, peaks = (sum(getattr(one, f"same_{what}") for *_, one in found) for what in ("kernels", "peak"))
    near = sum(abs(one.plain - one.peak - one.known) <= 0.05 * one.plain for *_, one in found)
    order = sum(one.same_order for *_, one in found)
    beneath = ", ".join(f"{name} {many}" for name, many in sorted(inside.items()))
    summary = (
        f"PyTorch {torch.__version__.partition('+')[0]} and transformers {transformers.__version__}: "
        f"{len(rows)} checks. In {kernels} the kernels are ours, each with its bytes read and written; in {order} the "
        f"profiler recorded the operators that the dispatch mode saw, in their order; in {peaks} the most that is held "
        f"is ours to the byte, in {near} within 5 %. Where they differ PyTorch's figure comes first, ours second.\n\n"
        f"What operators ran inside, all checks together: {beneath}."
    )
    write("engine-torch.md", summary, HEADS, rows, numbers=5)
    return f"{len(rows)} checks, {kernels} with the same kernels, {peaks} with the same peak, {near} within 5 %"


def _row(name: str, attention: str, call: str, one: Asked) -> Iterator[str]:
    yield from (name, attention, call)
    yield both(str(one.theirs.total()), str(one.ours.total()))
    for side in (0, 1):
        moved = (f"{sum(key[side] * many for key, many in found.items()):,.0f}" for found in (one.theirs, one.ours))
        yield both(*moved)
    yield both(f"{one.plain + one.room:,}", f"{one.peak + one.known + one.room:,}")
    yield f"{one.room:,}"
    yield "" if one.same_kernels and one.same_peak else REASONS.get(name, "unexplained")
