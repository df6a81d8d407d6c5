"""The bench of a GPU: kernels as nodes of a CUDA graph, so that no launch from the host is timed with them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from modelmeter.calibrate.timing import Call, Question

LASTS = 2e-3
"""Seconds that a graph lasts at least, so that its own launch is little beside them."""
NODES = 500
"""Nodes of a graph at most."""


class Graphics:
    """A GPU of torch; its clock is the wall's."""

    clock = staticmethod(perf_counter)

    def calls(self, question: Question, first: int, many: int) -> list[Call]:
        """So many replays of a graph of the question's kernel again and again, each node with operands of its own."""
        run = question.ready(first)
        run()
        once = _seconds(run)
        nodes = max(1, min(NODES, int(LASTS / once)))
        graph = captured([question.ready(first + i) for i in range(nodes)])
        graph.replay()
        return [Call(_seconds(graph.replay) / nodes, 1.0) for _ in range(many)]


def captured(runs: list[Callable[[], Any]]) -> Any:
    """A graph of kernels, one after the other."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return graph


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds between two events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def finished(run: Callable[[], Any]) -> Callable[[], Any]:
    """It, and waiting until the GPU is done."""

    def whole() -> Any:
        found = run()
        torch.cuda.synchronize()
        return found

    return whole
