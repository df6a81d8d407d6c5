"""Compiled models equal the uncompiled ones, on ints and on arrays."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelmeter.errors import InputError

STAGES = ("vision", "prefill", "decode")
VARIANTS = [
    {}, {"attention": "eager"}, {"execution": "fused"}, {"execution": "compulsory"},
    {"causal": "exact", "logits": "last", "rotary": "transformers"}, {"mode": "gundam_m"},
]  # fmt: skip


def same(fast, slow):
    """Equal; the expected traffic of experts, no integer, to the rounding of a float."""
    assert replace(fast, weight_io_bytes=0) == replace(slow, weight_io_bytes=0)
    assert fast.weight_io_bytes == pytest.approx(slow.weight_io_bytes, rel=1e-15)


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: ",".join(v.values()) or "default")
def variant(request, model):
    return request.param, model.compile(**request.param)


@settings(max_examples=10)
@given(st.tuples(*(st.integers(1, 40) for _ in range(5))))
def test_ints_are_equal(variant, model, sizes):
    options, compiled = variant
    batch, h, w, prompt, steps = sizes
    page = model.workload(grid=f"{h}x{w}", batch=batch, prompt_tokens=prompt, decode_steps=steps, **options)
    fast = compiled(batch=batch, grid_h=h, grid_w=w, prompt_tokens=prompt, decode_steps=steps)
    for stage in STAGES:
        same(fast[stage], model.cost(stage, page))
        assert all(
            isinstance(getattr(fast[stage], k), int) for k in ("tensor_core_flops", "cuda_core_flops", "kv_io_bytes")
        )


def test_arrays_are_equal_across_chunks(variant, model):
    options, compiled = variant
    rng = np.random.default_rng(0)
    points = 20_000  # more than two chunks
    names = ("batch", "grid_h", "grid_w", "prompt_tokens", "decode_steps")
    sizes = {name: rng.integers(1, 9, points).astype(float) for name in names}
    fast = compiled(**sizes)
    grid = (sizes.pop("grid_h"), sizes.pop("grid_w"))
    page = model.workload(grid=grid, **sizes, **options)
    for stage in STAGES:
        slow = model.cost(stage, page).as_dict()
        for name, value in fast[stage].as_dict().items():
            assert np.allclose(value, slow[name], rtol=1e-15, atol=0), (stage, name)
        assert np.array_equal(fast[stage].tensor_core_flops, slow["tensor_core_flops"])


def test_a_mode_without_crops_has_no_grid_to_vary(model):
    compiled = model.compile(mode="base")
    assert compiled.names == ("batch", "prompt_tokens", "decode_steps")
    page = model.workload(mode="base", prompt_tokens=3, decode_steps=5)
    for stage, cost in compiled(batch=1, prompt_tokens=3, decode_steps=5).items():
        same(cost, model.cost(stage, page))


def test_bad_sizes_are_named(model):
    compiled = model.compile(mode="base")
    good = {"batch": 1, "prompt_tokens": 0, "decode_steps": 2}
    for change, message in (
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"decode_steps": 1.5}, "decode_steps must be a whole number"),
        ({"steps": 1}, "unknown size 'steps'"),
        ({"batch": np.ones((2, 3))}, "must be one-dimensional"),
        ({"batch": np.ones(3), "decode_steps": np.ones(4)}, "must have one length, not 3, 4"),
    ):
        with pytest.raises(InputError, match=message):
            compiled(**good | change)
    with pytest.raises(InputError, match="size 'batch' is not given"):
        compiled(prompt_tokens=0, decode_steps=2)
    with pytest.raises(InputError, match="'batch' is a size"):
        model.compile(batch=3)
