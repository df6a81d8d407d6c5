"""Mutates the engine and asks the tests: python scripts/mutate.py --sample 100 --seed 1

A mutant is one change in one line: a comparison or sign turned round, a condition dropped, a number one off, a
statement deleted. Tests run on a copy of the tree and stop at the first failure. Results are kept in
build/mutants.jsonl, so that a run that was cut off goes on; docs/mutations.md is written from them, and keeps what
it says about each survivor.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from threading import Lock

ENGINE = ("sizes", "graph", "runtimes", "programs")
TESTS = (
    "graph", "sums", "scalars", "deepseek_ocr", "sizes", "identities", "programs", "loop_nest", "runtimes", "operators",
    "eager", "torch", "small_models", "javascript",
)  # fmt: skip
"""Those that fail soonest come first."""
RESULTS, PAGE = Path("build/mutants.jsonl"), Path("docs/mutations.md")
PIPE = r"\|"  # in a table
LIMIT = 300
"""Seconds after which a run counts as failed: the mutant does not end."""

SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Add, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one node: `place` says which node of the file in the order of a walk, `way` which of its changes.

    `twin` counts the mutants before it that have the same line and the same words.
    """

    path: str
    line: str
    change: str
    place: int
    way: int
    number: int
    twin: int

    @property
    def key(self) -> str:
        """What tells it apart, also after lines have moved."""
        return f"{self.path}: {self.line} # {self.change}{f' ({self.twin + 1})' if self.twin else ''}"


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Each change of a node as words and the new node; None deletes a statement."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new = copy.copy(node)
        new.ops = [SWAPS[type(node.ops[0])](), *node.ops[1:]]
        yield ast.unparse(new), new
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        new = copy.copy(node)
        new.op = SWAPS[type(node.op)]()
        yield ast.unparse(new), new
    if isinstance(node, (ast.If, ast.IfExp)):
        for truth in (True, False):
            new = copy.copy(node)
            new.test = ast.Constant(truth)
            yield f"if {truth}", new
    if isinstance(node, ast.comprehension) and node.ifs:
        new = copy.copy(node)
        new.ifs = []
        yield "no condition", new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "no not", node.operand
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for value in (node.value - 1, node.value + 1):
            yield str(value), ast.Constant(value)
    if isinstance(node, (ast.AugAssign, ast.Raise, ast.Continue)) or _acts(node):
        yield "deleted", None


def _acts(node: ast.AST) -> bool:
    """Whether a statement does something that deleting it leaves undone: a call, an item or attribute that is set."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Subscript, ast.Attribute))


def nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Parent, field, index and child of all nodes but those of types, docstrings and the words of errors."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params") or isinstance(
            tree, (ast.Raise, ast.JoinedStr)
        ):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield tree, name, index, child
                yield from nodes(child)


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a file."""
    source = path.read_text()
    lines = source.splitlines()
    found: list[Mutant] = []
    for place, (_, _, _, child) in enumerate(nodes(ast.parse(source))):
        number = getattr(child, "lineno", None) or getattr(getattr(child, "target", None), "lineno", 0)
        for way, (words, _) in enumerate(changes(child)):
            line = lines[number - 1].strip()
            twin = sum((m.line, m.change) == (line, words) for m in found)
            found.append(Mutant(str(path), line, words, place, way, number, twin))
    return found


def mutated(mutant: Mutant, source: str) -> str:
    """The source of its file with the change."""
    tree = ast.parse(source)
    parent, name, index, child = list(nodes(tree))[mutant.place]
    new = list(changes(child))[mutant.way][1] or ast.Pass()
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new
    return ast.unparse(ast.fix_missing_locations(tree))


def verdict(tree: Path, names: list[str]) -> str:
    """Which test fails in a copy of the tree; "" if none does."""
    tests = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-n0", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return "does not end"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "" if not done.returncode else failed[0].split(" - ")[0] if failed else "does not import"


def run(chosen: list[Mutant], parallel: int, minutes: float, tests: list[str]) -> None:
    """Tries each mutant that has no result yet, on copies of the tree, until the time is over."""
    known, lock, end = results(), Lock(), time.monotonic() + minutes * 60
    with TemporaryDirectory() as folder, ThreadPoolExecutor(parallel) as pool:
        trees: Queue[Path] = Queue()
        for index in range(parallel):
            tree = Path(folder, str(index))
            for part in ("src", "tests", "configs", "examples", "pyproject.toml"):
                copied = shutil.copytree if Path(part).is_dir() else shutil.copy2
                tree.mkdir(exist_ok=True)
                copied(part, tree / part)
            trees.put(tree)
        if failed := verdict(trees.queue[0], tests):
            raise SystemExit(f"the tests fail without any change: {failed}")

        def attempt(mutant: Mutant) -> None:
            if mutant.key in known or time.monotonic() > end:
                return
            tree = trees.get()
            source = (tree / mutant.path).read_text()
            (tree / mutant.path).write_text(mutated(mutant, source))
            failed = verdict(tree, tests)
            (tree / mutant.path).write_text(source)
            trees.put(tree)
            with lock, RESULTS.open("a") as file:
                file.write(json.dumps({"key": mutant.key, "failed": failed}) + "\n")
            print(
                f"{'killed' if failed else 'SURVIVED'} {mutant.path}:{mutant.number} {mutant.change} {failed}",
                flush=True,
            )

        list(pool.map(attempt, chosen))


def results() -> dict[str, str]:
    """What failed, by the key of the mutant."""
    RESULTS.parent.mkdir(exist_ok=True)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {entry["key"]: entry["failed"] for entry in map(json.loads, lines)}


def reasons() -> dict[str, str]:
    """What the page says about each survivor so far, by the cells before it."""
    rows = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {row.rpartition(" | ")[0]: row.rpartition(" | ")[2].strip("| ") for row in rows if "` | `" in row}


def page(everything: list[Mutant]) -> str:
    """docs/mutations.md."""
    known, said, counts, survivors = results(), reasons(), defaultdict(lambda: [0, 0, 0]), []
    for mutant in everything:
        module = "/".join(mutant.path.split("/")[2:])
        counts[module][0] += 1
        if mutant.key in known:
            counts[module][1] += 1
            counts[module][2] += bool(known[mutant.key])
            if not known[mutant.key]:
                line, change = (text.replace("|", PIPE) for text in (mutant.line, mutant.change))
                twin = f", place {mutant.twin + 1}" if mutant.twin else ""
                survivors.append(f"| {module} | `{line}` | `{change}`{twin}")
    tried, killed = (sum(row[i] for row in counts.values()) for i in (1, 2))
    lines = [
        INTRODUCTION.format(tried=tried, killed=killed, all=len(everything), share=100 * killed / max(tried, 1)),
        "| module | mutants | tried | killed |", "|---|--:|--:|--:|",
        *(f"| {module} | {a} | {b} | {c} |" for module, (a, b, c) in counts.items()),
        "", "## Survivors", "", "| module | line | becomes | why no test fails |", "|---|---|---|---|",
    ]  # fmt: skip
    lines += [f"{cells} | {said.get(cells, 'not looked at')} |" for cells in dict.fromkeys(survivors)]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# What the tests would notice

`python scripts/mutate.py --only PART --sample N --seed S` changes one thing in one line of the engine (`sizes`,
`graph`, `runtimes`, `programs`) and runs the tests on it, and again for the next change: comparisons and signs turned
round, conditions dropped, numbers one off, statements deleted. A mutant that no test notices survives. Of {all} mutants
{tried} were tried, drawn at random within the parts that have any, and {killed} were killed, {share:.0f} %. A module
with 0 tried has not been looked at.
"""


def main() -> None:
    """Run a sample, or all; then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="how many mutants, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600, help="start no mutant after that")
    parser.add_argument("--only", default="", help="a part of a path, as graph/ops")
    parser.add_argument("--tests", default=",".join(TESTS))
    given = parser.parse_args()
    everything = [
        m for part in ENGINE for path in sorted(Path("src/modelmeter", part).glob("*.py")) for m in mutants(path)
    ]
    chosen = [m for m in everything if given.only in m.path]
    if given.sample:
        chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
    run(chosen, given.parallel, given.minutes, given.tests.split(","))
    PAGE.write_text(page(everything))


if __name__ == "__main__":
    main()
