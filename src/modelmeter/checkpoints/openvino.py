"""What a process holds that runs a decoder by OpenVINO on a CPU: the file, repacked matrices, cache, blocks of tensors.

Each part was measured on a process of the engine (docs/engine-openvino.md). Next: `runtimes/openvino.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from modelmeter.models.model import BaseModel
from modelmeter.sizes import Size

_LOGITS = 3
"""How often logits lie in memory: the result of the head, and the output port's two places."""
_BOOLEAN = 2
"""Masks of a byte each beside the one of numbers: of what comes earlier, and of what is no padding."""


class Held(NamedTuple):
    """Bytes: the `file` mapped, matrices `repacked` once more, the `cache`, and `blocks` of activations."""

    file: Size
    repacked: Size
    cache: Size
    blocks: Size


def held(model: BaseModel, tokens: int) -> Held:
    """What a process holds after a prompt of so many tokens of one sequence, weights in 32 bits, the cache in 16.

    Each matrix that a product reads is packed once more, for the product. The graph itself, some MB, the code of the
    engine and what the file has beside weights are not counted. Raises InputError.
    """
    precision = {"weights": "fp32", "activations": "fp32", "kv": "fp16"}
    work = model.text(tokens, precision=precision, runtime="openvino_stateful")
    whole, table = model.cost("prefill", work), model.breakdown("prefill", work)["embedding"]
    logits = model.kernels("prefill", work)[-1].written_bytes["activation"]
    blocks = whole.peak_activation_bytes + (_LOGITS - 1) * logits + _BOOLEAN * tokens * tokens
    packed = whole.weight_io_bytes - table.weight_io_bytes
    return Held(whole.weight_bytes, packed, whole.kv_cache_bytes, blocks)
