"""PyTorch itself on the CPU beside the runtimes `eager` and `sdpa`: kernels and their bytes, as a dispatch mode and
torch.profiler see them, and the most that the CPU allocator holds.

`python scripts/engines torch_cpu` asks all questions of docs/engine-torch.md; here are two calls of each decoder.
"""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch_engine import ATTENTION, Recorded  # noqa: E402
from torch_subjects import (  # noqa: E402
    ATTENTION as KINDS,
)
from torch_subjects import CALLS, DECODERS, GRIDS, HALF, REASONS, SEQUENCES, ask, questions  # noqa: E402

NEAR = 0.05
EXACT = [name for name in DECODERS if name not in REASONS]
ROUTED = {"mixtral": 2 + 4, "qwen3_moe": 2 + 4}
"""Bytes that a router's code still names, an expert and token: its logits, and the weights of the chosen."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("call", CALLS[1:3], ids=str)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("name", EXACT)
def test_a_decoder_runs_our_kernels_and_holds_our_bytes(name, attention, call):
    found = ask(SEQUENCES[name](attention, *call))
    assert found.same_order and found.ours == found.theirs and found.ours.total() > 80
    assert found.same_peak and found.peak > 4000


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("name", [name for name in GRIDS if name not in REASONS])
def test_towers_run_our_kernels_and_hold_our_bytes(name, attention):
    found = ask(GRIDS[name](attention=attention))
    assert found.same_order and found.ours == found.theirs and found.same_peak


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("name", [name for name in GRIDS if name in REASONS])
def test_other_towers_run_as_many_kernels_and_hold_little_else(name, attention):
    found = ask(GRIDS[name](attention=attention))
    assert found.same_order and found.ours.total() == found.theirs.total()
    assert abs(found.plain - found.peak - found.known) < NEAR * found.plain
    assert (found.ours - found.theirs).total() == (1 if "minimind2" in name else 0)


@pytest.mark.parametrize("attention", KINDS)
def test_gemma_differs_by_its_constants(attention):
    """Its norms read 1 + W in fp32 for W in 16 bits, 2 bytes more an element; the embedding's scale is one element."""
    found = ask(SEQUENCES["gemma"](attention, *CALLS[1]))
    norms, width = 3 * 2 + 1, 48
    more = sum(r * n for (r, _), n in found.theirs.items()) - sum(r * n for (r, _), n in found.ours.items())
    assert found.same_order and found.ours.total() == found.theirs.total()
    assert more == norms * width * 2 + 2
    assert abs(found.plain - found.peak - found.known) < NEAR * found.plain


@pytest.mark.parametrize("attention", KINDS)
def test_deepseek_ocrs_decoder_holds_a_second_mask_and_what_its_routers_name(attention):
    b, s, _ = CALLS[1]
    found = ask(SEQUENCES["deepseek_ocr"](attention, *CALLS[1]))
    mask = 2 * b * s * s if attention == "eager" else s * s
    assert found.same_order and found.ours == found.theirs
    assert found.plain - found.peak - found.known == mask + b * s * 4 * (4 + 4)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("name", ROUTED)
def test_mixtures_cast_their_routers_logits_by_a_kernel_more(name, attention):
    b, s, _ = CALLS[1]
    found = ask(SEQUENCES[name](attention, *CALLS[1]))
    one = 4 * b * s * 4  # of four experts, in fp32
    assert found.same_order and found.ours - found.theirs == {} and found.theirs - found.ours == {(one, one): 3}
    assert abs(found.plain - found.peak - found.known) < NEAR * found.plain


def test_the_room_of_an_attention_kernel_is_one_tile_of_scores_and_results():
    """32 queries a tile, up to 512 keys: scores, their largest and sum, the result, all fp32, and the scores in bf16."""
    b, h, s, t, e = 1, 2, 70, 90, 16
    q, k, v = (torch.empty(b, h, length, e, dtype=HALF).normal_() for length in (s, t, t))
    found = Recorded(lambda: (q, k, v), torch.nn.functional.scaled_dot_product_attention)
    assert found.operators == [ATTENTION]
    beside = sorted(block.bytes for block in found.blocks if block.inside)
    tile, keys = min(32, s), min(512, t)
    assert beside == sorted([4 * b * h * s, 4 * tile * (keys + 1 + 1 + e), 2 * tile * keys])


def test_the_page_is_of_all_questions():
    page = Path("docs/engine-torch.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| (eager|sdpa) \| ([^|]*) \|.*\| ([^|]*) \|$", page, re.M)
    asked = [(name, kind, ", ".join(map(str, call))) for name, kind, call, _ in questions()]
    assert [(name, kind, call.strip()) for name, kind, call, _ in rows] == asked
    assert {name: why for name, _, _, why in rows if why.strip()}.items() <= REASONS.items()
    assert "unexplained" not in page
