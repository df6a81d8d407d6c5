"""What torch's own counter says of a module at some sizes: the other side of every comparison.

The module runs as it is, on the meta device, with its own attention and torch's FlopCounterMode; experts run as a batch
of products, since what they do otherwise depends on the values of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from modelmeter.tracing.api import Input, evaluating
from modelmeter.tracing.causal import REAL, STUBS, UNCACHED, set_experts


@contextmanager
def _as_it_runs(module: torch.nn.Module) -> Iterator[None]:
    set_experts(module, "batched_mm")
    (target, stub), *_ = STUBS.items()
    with evaluating(module), torch.no_grad(), torch.device("meta"), patch(target, stub):
        yield


def _counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _of_a_run(run: Callable[[], int]) -> int:
    """What a run counts, as real tensors run or, where that needs their values, as transformers runs fake ones."""
    try:
        return run()
    except RuntimeError as error:
        if "meta tensors" not in str(error):
            raise
    with patch(REAL, lambda tensor: True):
        return run()


def prefill_flops(module: Any, b: int, s: int) -> int:
    """FLOPs of a prompt of s tokens, b at once; without a cache where transformers has none for the module."""

    def run() -> int:
        ids = torch.zeros((b, s), dtype=torch.int64)
        try:
            cache = DynamicCache(config=module.config)
            return _counted(lambda: module(input_ids=ids, past_key_values=cache, use_cache=True))
        except UNCACHED:
            return _counted(lambda: module(input_ids=ids, use_cache=False))

    with _as_it_runs(module):
        return _of_a_run(run)


def decode_flops(module: Any, b: int, t: int) -> int:
    """FLOPs of one token, b at once, with a context of t tokens, its own included."""

    def run() -> int:
        cache = DynamicCache(config=module.config)
        past = torch.zeros((b, t - 1), dtype=torch.int64)
        module(input_ids=past, past_key_values=cache, use_cache=True)
        ids = torch.zeros((b, 1), dtype=torch.int64)
        return _counted(lambda: module(input_ids=ids, past_key_values=cache, use_cache=True))

    with _as_it_runs(module):
        return _of_a_run(run)


def forward_flops(module: torch.nn.Module, *inputs: str, method: Any = None, **sizes: int) -> int:
    """FLOPs of a module at some sizes of its named inputs."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    with _as_it_runs(module):
        tensors = [torch.zeros(given.shape(sizes), dtype=given.dtype or dtype) for given in map(Input.of, inputs)]
        return _counted(lambda: method(module, *tensors) if method else module(*tensors))
