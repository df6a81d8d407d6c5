"""The departures of the published ModelMeter report from the real DeepSeek-OCR, one small function each.

A function changes the real model, its sizes or its ops, and nothing in the layers knows of it. DEPARTURES
names them with the evidence for the real count. The model that applies them is in `published.py`, the
published tables in configs/published/deepseek_ocr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import TypeVar

from modelmeter.equations import parse
from modelmeter.layer import BaseLayer, rebuild, walk
from modelmeter.layers import DeepseekV2DecoderLayer, DeepseekV2MoE, MlpProjector
from modelmeter.models.deepseek_ocr.model import DeepSeekOCR
from modelmeter.ops import NOTHING, Op, Ref, Sizes
from modelmeter.sizes import Size, ratio

T = TypeVar("T")

PUBLISHED_SCALARS = {
    "sam*mlp pointwise h": 4,  # gelu
    "sam.neck*norm norm y": 5,  # LayerNorm2d
    "clip*mlp pointwise h": 5,  # quick-gelu
    "clip.norm norm y": 5,  # the one LayerNorm outside the blocks
    "projector* pointwise y": 8,  # gelu of the two-layer projector
    "decoder.layers*mlp* pointwise _g": 4,  # silu and the product with the other half
    "decoder.layers*gate softmax _p": 6,  # the whole router, by expert and token
    "decoder.layers*norm? norm y": 3,  # RMSNorm; the final one is left out
}
"""CUDA-core FLOPs an output element by "path kind output"; all else counts 0 in the published tables."""


def relative_positions(ops: Iterable[Op]) -> Iterator[Op]:
    """The two einsums q Rh and q Rw with an eighth of their FLOPs."""
    for op in ops:
        if op.tensor is not None and op.equation.startswith(("bh[", "bw[")):
            op = op._replace(tensor=op.tensor.times(Fraction(1, 8)))
        yield op


def projector(ops: Iterable[Op]) -> Iterator[Op]:
    """Two linear layers on every row with its newline; the rows of all crops again for each crop."""
    ops = list(ops)
    rows = {op.reads[0].name: op.n.axes[_tokens(op)] for op in ops if "W_newline" in op.equation}
    for op in ops:
        if op.path.partition(".")[0] != "projector" or op.equation.startswith("joined_"):
            yield op
        elif "W_0[" in op.equation:
            two = MlpProjector("mlp_gelu", op.n.c, op.n.d, depth=2)
            place = op.n.bind(s=rows.get(op.writes[0].name, op.n.s), **two.axes)
            yield from _scalars(two.ops(place))


def _tokens(op: Op) -> str:
    """The axis of the tokens that an op writes, its second."""
    return parse(op.equation).outputs[0].stored[1]


def mixtures(model: DeepSeekOCR) -> DeepSeekOCR:
    """Every decoder layer with the mixture of the others."""
    mixture = next((layer for layer in walk(model.decoder) if isinstance(layer, DeepseekV2MoE)), None)

    def mixed(layer: BaseLayer) -> BaseLayer:
        return replace(layer, mlp=mixture) if mixture and isinstance(layer, DeepseekV2DecoderLayer) else layer

    return replace(model, decoder=rebuild(model.decoder, mixed))


def decode_context(n: Sizes) -> Sizes:
    """A decode step whose query does not see its own key; a prefill as it is."""
    one_query, one_key = (isinstance(size, int) and size == 1 for size in (n.s, n.t))
    return n.bind(t=n.t - 1) if one_query and not one_key else n


def scalar_operations(ops: Iterable[Op]) -> Iterator[Op]:
    """CUDA-core FLOPs by PUBLISHED_SCALARS, attention without the matmul of its rotary table."""
    for op in _scalars(ops):
        yield op._replace(tensor=None) if op.path.endswith(".rotary") else op


def _scalars(ops: Iterable[Op]) -> Iterator[Op]:
    for op in ops:
        place = f"{op.path} {op.kind} {parse(op.equation).outputs[0].name}" if op.cuda else ""
        flops = next((f for pattern, f in PUBLISHED_SCALARS.items() if fnmatchcase(place, pattern)), 0)
        yield op._replace(cuda=(op.writes[0].elements.times(flops),) if flops else ())


def weights(ops: Iterable[Op]) -> Iterator[Op]:
    """The vision towers stored twice, one routed expert a layer; no embedding, projector, image marks.

    Published are three digits, so parts below 0.2 % (CLIP's unused convolution) are undetermined.
    """
    left_out = ("embedding", "projector", "join")
    for op in ops:
        stage = op.path.partition(".")[0]
        copies: Size = 2 if stage in ("sam", "clip") else 1
        if stage in left_out or op.kind == "unused":
            copies = 0
        elif op.path.endswith(".experts"):
            copies = ratio(1, op.n.E)
        yield op._replace(reads=tuple(_stored(ref, copies) for ref in op.reads))


def _stored(ref: Ref, copies: Size) -> Ref:
    if ref.role != "weight":
        return ref
    return ref._replace(elements=ref.elements.times(copies), stored=ref.stored.times(copies))


def traffic_and_peak(ops: Iterable[Op]) -> Iterator[Op]:
    """Only activations cross between memory and chip, and no layer frees what it wrote."""
    newest: dict[str, str] = {}
    for index, op in enumerate(op for op in ops if op.kind != "hold"):
        reads = tuple(_unmoved(ref)._replace(name=newest.get(ref.name, ref.name)) for ref in op.reads)
        writes = []
        for ref in map(_unmoved, op.writes):
            if ref.role == "activation":
                newest[ref.name] = f"{ref.name}.{index}"
                stored = ref.stored.times(op.times)
                ref = ref._replace(name=newest[ref.name], frame="", temporary=False, stored=stored)
            writes.append(ref)
        yield op._replace(reads=reads, writes=tuple(writes))


def _unmoved(ref: Ref) -> Ref:
    return ref if ref.role == "activation" else ref._replace(touched=NOTHING)


def _as_it_is(real: T) -> T:
    return real


@dataclass(frozen=True)
class Departure:
    """One way in which the published counts differ from the real ones.

    `what` the report does, `evidence` why the real count is right; `model`, `sizes` (of a language
    stage) and `ops` turn the real thing into the published one.
    """

    name: str
    what: str
    evidence: str
    model: Callable[[DeepSeekOCR], DeepSeekOCR] = _as_it_is
    sizes: Callable[[Sizes], Sizes] = _as_it_is
    ops: Callable[[Iterable[Op]], Iterable[Op]] = _as_it_is


DEPARTURES = (
    Departure(
        "relative_positions",
        "SAM's relative-position einsums count an eighth of their FLOPs.",
        "Attention in deepencoder/sam_vary_sdpa.py runs both einsums over every head, query and key row, "
        "and FlopCounterMode on that module counts them in full.",
        ops=relative_positions,
    ),
    Departure(
        "projector",
        "The projector has two layers, sees newlines as tokens and runs over all crops once a crop.",
        "The checkpoint's config.json says projector_type linear, and deepseek_ocr.py adds newlines after "
        "projecting the patch tokens of each crop once, so that cost is linear in the crops.",
        ops=projector,
    ),
    Departure(
        "layer_table",
        "The layer table adds CUDA-core FLOPs to its theory alone, and cuts some layers down on one side or both.",
        "FlopCounterMode sees matmuls and convolutions only: tensor-core FLOPs of whole layers equal it exactly.",
    ),
    Departure(
        "mixtures",
        "The first decoder layer is a mixture of experts like the others.",
        "The checkpoint's config.json says first_k_dense_replace 1, and its layer 0 holds one MLP of width 6848.",
        model=mixtures,
    ),
    Departure(
        "decode_context",
        "A decoded token attends to the tokens before it and not to itself.",
        "LlamaAttention appends the new key and value to the cache before it multiplies, so S + t + 1 "
        "positions are read at step t = 0, 1, ...",
        sizes=decode_context,
    ),
    Departure(
        "scalar_operations",
        "Softmax, most norms, residuals, biases and rotary positions count nothing, activations by other constants.",
        "The unfused graph of the vendor's modules runs each of them as kernels of its own; counting its "
        "operations one by one gives docs/counting.md, and FlopCounterMode sees the rotary matmul.",
        ops=scalar_operations,
    ),
    Departure(
        "weights",
        "The vision towers are stored twice, one routed expert a layer, no embedding table; GiB are called GB.",
        "The parameters of the real modules add up to the size of the public checkpoint, 64 experts a mixture.",
        ops=weights,
    ),
    Departure(
        "traffic_and_peak",
        "Traffic is activations alone, and peak memory the sum of all that all layers write.",
        "A decoded token reads every active weight and the whole KV cache, and torch frees a layer's "
        "tensors when it returns, as tracking live storages on the modules shows.",
        ops=traffic_and_peak,
    ),
)
"""All departures, in the order in which they are applied."""
