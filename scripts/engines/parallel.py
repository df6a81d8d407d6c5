"""transformers' tensor and expert parallelism, asked of released decoders at full size on the meta device.

Beside the first of its ranks stands one device of ours. Needs the extra `validation`; takes about five minutes.
"""

from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

from page import both, write

from modelmeter.config import load_model
from modelmeter.runtimes.parallel import Parallel
from modelmeter.validate.decoders import fields_of
from modelmeter.validate.parallel import ours, theirs

HEADS = ("decoder", "tensor", "expert", "parameters", "GFLOP", "cache kB", "sent by", "differs")
TOKENS = 512
QUESTIONS = {
    "llama_3_2_1b": "4", "llama_3_1_70b": "8", "mistral_7b": "8", "qwen2_5_7b": "4", "qwen3_32b": "8",
    "qwen3_30b_a3b": "4 4x4", "gemma_2_2b": "4", "mixtral_8x7b": "8 8x8", "deepseek_v2_lite": "4 4x4",
    "deepseek_v3": "8", "glm_4_5_air": "8", "phi_4": "2", "gpt_oss_20b": "4",
}  # fmt: skip
"""Decoders, and by how many devices, with experts by how many."""
SHARED = "it adds up shared experts by themselves, we with the routed ones"
MASKED = "its product over experts runs the masked rows of other ranks' experts too"
REASONS = {
    "deepseek_v2": SHARED, "glm4_moe": SHARED,
    "deepseek_v3": f"its plan leaves latent attention whole; {SHARED}",
    "phi3": "it gathers what merged projections make, and attends to all heads on each rank",
    "gpt_oss": "it has no plan of the layers: a rank splits the head alone",
}  # fmt: skip
"""Why a type differs, as its plan in transformers says."""


def ask() -> str:
    """Ask, and write docs/parallel.md below its mark."""
    rows = [list(_row(name, *map(int, (asked + "x1").split("x")[:2]))) for name, all_ in QUESTIONS.items()
            for asked in all_.split()]  # fmt: skip
    equal = sum(row[-1] == "" for row in rows)
    summary = (
        f"transformers {version('transformers')} with the plans of its own classes, a prompt of {TOKENS} tokens on the "
        f"first rank: {len(rows)} checks, {equal} equal in every figure. Where they differ its figure comes first, "
        "ours second. Collectives are kind x how often x elements of the result."
    )
    write("parallel.md", summary, HEADS, rows, numbers=6)
    return f"{len(rows)} checks, {equal} equal"


def _row(name: str, tensor: int, expert: int) -> Iterator[str]:
    fields, parallel = fields_of(name), Parallel(tensor=tensor, expert=expert)
    assert fields is not None
    found = theirs(fields, parallel, 1, TOKENS)
    mine = ours(fields, load_model(name).stages[0].layer, parallel, 1, TOKENS)
    yield from (name, str(tensor), str(expert))
    yield both(f"{found.parameters:,}", f"{mine.parameters:,}")
    yield both(*(f"{rank.tensor_core_flops / 1e9:,.3f}" for rank in (found, mine)))
    yield both(*(f"{rank.kv_cache_bytes / 1e3:,.0f}" for rank in (found, mine)))
    yield both(_told(found.sent), _told(mine.sent))
    reasons = [REASONS[kind]] if (kind := str(fields["model_type"])) in REASONS else []
    why = "; ".join([*reasons, *([MASKED] if expert > 1 else [])])
    yield "" if found == mine else why or "unexplained"


def _told(sent: Counter[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} {often} x {elements:,}" for (kind, elements), often in sorted(sent.items()))
