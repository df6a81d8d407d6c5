"""Kernels as torch runs them in a model's eager code, as questions: products, attention, streams.

Weights and caches walk through a pool that no cache of the machine holds; activations are where the last kernel left
them, near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from modelmeter.calibrate.timing import Question

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32,
          "fp8": torch.float8_e4m3fn, "int8": torch.int8}  # fmt: skip
LARGE = {"int8": 200.0}
"""What numbers reach in a format, where one half of it is nothing but zeros."""
INT8_ROWS = 16
"""Rows that torch multiplies no fewer of in int8."""
Asked = Mapping[str, Any]
Made = Iterator[tuple[str, dict[str, float], Callable[[int], Callable[[], Any]]]]


class Pool:
    """Memory of a device that calls take their cold operands from, one piece after the other, in a format."""

    def __init__(self, size: float, form: str, device: str = "cpu") -> None:
        self.form, self.device, self.each = form, device, DTYPES[form].itemsize
        random = torch.rand(int(size) // self.each, device=device)
        self._flat = random.sub_(0.5).mul_(LARGE.get(form, 1.0)).to(DTYPES[form])
        self._next = 0

    def holds(self, *shape: int) -> bool:
        """Whether a piece of this shape is in it."""
        return torch.Size(shape).numel() <= self._flat.numel()

    def take(self, *shape: int) -> torch.Tensor:
        """The next piece."""
        count = torch.Size(shape).numel()
        if self._next + count > self._flat.numel():
            self._next = 0
        self._next += count
        return self._flat[self._next - count : self._next].view(shape)


def questions(asked: Asked, form: str, device: str = "cpu") -> Iterator[Question]:
    """All that is asked in a format: what `asked` has sizes of."""
    pool = Pool(float(asked["pool"]), form, device)
    makers: dict[str, Callable[..., Made]] = {
        "shapes": _products,
        "prompts": _prompts,
        "towers": _towers,
        "steps": _steps,
        "scores": _scores,
        "pointwise": _pointwise,
    }
    for key, make in makers.items():
        for sizes in asked.get(key, ()):
            for law, work, ready in make(pool, asked, *sizes):
                yield Question(law, form, {name: float(value) for name, value in work.items()}, ready)


def levels(asked: Asked, form: str, device: str = "cpu") -> Iterator[Question]:
    """The ramp of bandwidth: one addition of two tensors into a new one, at sizes that each cache holds, and none."""
    dtype = DTYPES[form]
    for size in (3.0 * dtype.itemsize, *asked["levels"]):
        count = max(int(float(size)) // 3 // dtype.itemsize, 1)
        a, b = (torch.ones(count, dtype=dtype, device=device) for _ in range(2))
        yield Question("levels", form, {"moved": 3.0 * count * dtype.itemsize}, _call(torch.add, a, b))


def links(asked: Asked, device: str) -> Iterator[Question]:
    """Copies from the host to a device, at some sizes."""
    for size in asked["links"]:
        count = int(float(size))
        near = torch.empty(count, dtype=torch.uint8, pin_memory=device == "cuda")
        there = torch.empty(count, dtype=torch.uint8, device=device)
        yield Question("link", "", {"moved": float(count)}, _call(there.copy_, near, non_blocking=True))


def _call(run: Callable[..., Any], *given: Any, **options: Any) -> Callable[[int], Callable[[], Any]]:
    return lambda _: lambda: run(*given, **options)


def _products(pool: Pool, asked: Asked, n: int, k: int) -> Made:
    least = INT8_ROWS if pool.form == "int8" else 0
    for m in (m for m in asked["rows"] if m > least and pool.holds(m, k) and pool.holds(n, k)):
        x = pool.take(m, k)
        work = {"batch": 1, "m": m, "n": n, "k": k, "weights": n * k * pool.each}
        yield "vector" if m == 1 else "matrix", work, _product(pool, x, n, k)


def _product(pool: Pool, x: torch.Tensor, n: int, k: int) -> Callable[[int], Callable[[], Any]]:
    one = torch.ones((), device=pool.device)

    def ready(_: int) -> Callable[[], Any]:
        weight = pool.take(n, k)
        if pool.form == "fp8":
            eight = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
            return lambda: torch._scaled_mm(x, weight.t(), **eight)
        if pool.form == "int8":
            return lambda: torch._int_mm(x, weight.t())
        if pool.device != "cpu":
            torch.set_float32_matmul_precision("high" if pool.form == "tf32" else "highest")
        return lambda: linear(x, weight)

    return ready


def _attended(batch: int, heads: int, kv_heads: int, width: int, s: int, t: int, each: int) -> dict[str, float]:
    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "width": width, "values": width, "s": s, "t": t}
    return {**sizes, "window": 0, "causal": 1, "cached": 2 * batch * kv_heads * t * width * each}


def _prompts(pool: Pool, _: Asked, heads: int, kv_heads: int, width: int, s: int) -> Made:
    q, k, v = (pool.take(1, s, h, width).transpose(1, 2) for h in (heads, kv_heads, kv_heads))
    run = _call(scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=heads > kv_heads)
    yield "attention", _attended(1, heads, kv_heads, width, s, s, pool.each), run


def _towers(pool: Pool, _: Asked, batch: int, heads: int, width: int, s: int) -> Made:
    q, k, v = (pool.take(batch, s, heads, width).transpose(1, 2) for _ in range(3))
    work = _attended(batch, heads, heads, width, s, s, pool.each)
    yield "vision", {**work, "causal": 0}, _call(scaled_dot_product_attention, q, k, v)


def _steps(pool: Pool, _: Asked, heads: int, kv_heads: int, width: int, t: int, batch: int = 1) -> Made:
    """A cache that has just been copied, with one more token, as transformers does it; and the copy.

    A GPU keeps nothing of the copy near, so there it is none.
    """
    q, new = pool.take(batch, heads, 1, width), pool.take(batch, kv_heads, 1, width)

    def longer() -> torch.Tensor:
        if pool.device != "cpu":
            return pool.take(batch, kv_heads, t, width)
        return torch.cat([pool.take(batch, kv_heads, t - 1, width), new], dim=-2)

    def ready(_: int) -> Callable[[], Any]:
        k, v = longer(), longer()
        return lambda: scaled_dot_product_attention(q, k, v, enable_gqa=heads > kv_heads)

    def copied(_: int) -> Callable[[], Any]:
        old = pool.take(batch, kv_heads, t - 1, width)
        return lambda: torch.cat([old, new], dim=-2)

    yield "step", _attended(batch, heads, kv_heads, width, 1, t, pool.each), ready
    kept = batch * kv_heads * t * width * pool.each
    yield "stream", {"near": kept, "far": kept, "operations": 0}, copied


def _scores(pool: Pool, _: Asked, batch: int, m: int, n: int, k: int) -> Made:
    a, b = pool.take(batch, m, k), pool.take(batch, n, k).transpose(1, 2)
    moved = batch * (m * k + n * k + m * n) * pool.each
    yield "batched", {"batch": batch, "m": m, "n": n, "k": k, "moved": moved}, _call(torch.matmul, a, b)


def _pointwise(pool: Pool, _: Asked, rows: int, columns: int) -> Made:
    """Kinds of the kernels between products, with the operations that a count says each has."""
    x, y, w = pool.take(1, rows, columns), pool.take(1, rows, columns), pool.take(columns)
    size, n = rows * columns * pool.each, rows * columns
    kinds: Sequence[tuple[float, float, Callable[..., Any], tuple[Any, ...]]] = (
        (3, 1, torch.add, (x, y)),
        (2, 1, torch.mul, (x, w)),
        (2, 5, silu, (x,)),
        (2, 1, torch.pow, (x, 2)),
        (1, 1, lambda a: a.mean(-1, keepdim=True), (x,)),
        (2, 0, lambda a: torch.cat((a[..., columns // 2 :], a[..., : columns // 2]), dim=-1), (x,)),
    )
    for passes, each, run, given in kinds:
        yield "stream", {"near": passes * size, "far": 0, "operations": each * n}, _call(run, *given)
