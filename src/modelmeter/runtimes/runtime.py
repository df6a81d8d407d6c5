"""A runtime: a named policy that says how the ops of a graph become kernels, and how long tensors live.

Its numbers come from `configs/runtime/NAME.yaml`; one of a user's own is an object of this class. A runtime is its
passes, applied in order, and a rule of lifetimes: nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, final

from modelmeter.errors import InputError, choose
from modelmeter.folders import config_dir, config_names
from modelmeter.graph.graph import Graph
from modelmeter.runtimes import eager, held, passes, serving
from modelmeter.runtimes.ggml import ggml
from modelmeter.runtimes.ggml_fused import cuda_kernels, metal_kernels, vulkan_kernels
from modelmeter.runtimes.inductor import inductor
from modelmeter.runtimes.lifetimes import LIFETIMES, Rule, names
from modelmeter.runtimes.openvino import openvino, openvino_ports
from modelmeter.runtimes.passes import Pass, attention_kernel, backward, last_logits, ride, whole_stage
from modelmeter.runtimes.rotated import rotated_cache

PASSES: dict[str, Pass] = {f.__name__: f for f in (
    eager.around_a_kernel, attention_kernel, held.concatenated_cache, eager.contiguous, cuda_kernels,
    serving.fused_experts, serving.gated_in_one, ggml, inductor, passes.last_layer, last_logits,
    passes.merge_projections, metal_kernels, openvino, openvino_ports, serving.paged, serving.residual_norms, ride,
    serving.rotary_in_place, rotated_cache, eager.taken_apart, eager.torch_attention, held.views_of_one,
    vulkan_kernels, whole_stage, passes.without_dead_copies,
)}  # fmt: skip
"""Passes by the names that configs/runtime/*.yaml use."""
LAUNCHES = ("eager", "compiled", "graph", "shaped")
PRODUCTS = ("as stored", "dequantised")

FIXED: dict[Pass, dict[str, str]] = {
    last_logits: {"logits": "last"}, ggml: {"causal": "full", "activations": "fp32"},
}  # fmt: skip
"""What a pass counts whatever a workload asks for: ggml computes masked pairs too, and everything in 32 bits."""


@final
@dataclass(frozen=True)
class Runtime:
    """`passes` turn a graph's ops into kernels, `lifetimes` tells when tensors are freed.

    `launch` is how kernels reach a device: each by the host as its code runs (`eager`) or as compiled code does
    (`compiled`), which may find the shapes of each anew before (`shaped`), or those of a decode step together as one
    graph that was captured before (`graph`). `products` of many rows with llama.cpp's blocks read these as they are
    stored, or from a copy in 16 bits that is made each time (`dequantised`). `only` names the architectures of devices
    that it runs on, by what these begin with (none: all). No count depends on the three.

    >>> Runtime.of("flash").attention, Runtime.of("eager").attention
    ('flash', 'eager')
    """

    name: str
    passes: tuple[Pass, ...]
    lifetimes: Rule = names
    launch: str = "eager"
    products: str = "as stored"
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choose(f"launch of runtime {self.name!r}:", self.launch, LAUNCHES)
        choose(f"products of runtime {self.name!r}:", self.products, PRODUCTS)
        for given in (given for given in self.passes if not callable(given)):
            raise InputError(f"passes of runtime {self.name!r} must be functions of a graph, not {given!r}")

    @classmethod
    def of(cls, value: Any) -> Runtime:
        """A runtime itself, or one of configs/runtime by name. Raises InputError for anything else."""
        if isinstance(value, Runtime):
            return value
        if not isinstance(value, str):
            valid = ", ".join(config_names("runtime"))
            raise InputError(f"runtime must be a name or a Runtime, not {value!r}; names: {valid}")
        return _named(value)

    @cached_property
    def attention(self) -> str:
        """How attention runs: `flash`, scores on chip, or `eager`, scores through memory."""
        return "flash" if attention_kernel in self.passes else "eager"

    @cached_property
    def native(self) -> bool:
        """Whether it serves one user from C++, as llama.cpp does: no scheduler beside a step."""
        return ggml in self.passes

    @cached_property
    def latent_steps(self) -> str:
        """How steps of decode run latent attention whatever a workload asks for; "": as it asks.

        Engines with a paged cache multiply queries by what makes keys: `MLACommonImpl` of vLLM's backends, FlashMLA.
        """
        return "absorbed" if serving.paged in self.passes else ""

    @cached_property
    def is_bound(self) -> bool:
        """Whether it is none that runs: a stage as one kernel, or whatever can ride along riding along."""
        return whole_stage in self.passes or ride in self.passes

    @cached_property
    def fixed(self) -> dict[str, str]:
        """The options of a count that its passes fix."""
        return {name: value for given in self.passes for name, value in FIXED.get(given, {}).items()}

    def lowered(self, graph: Graph, *, logits: str = "all", gradients: bool = False) -> Graph:
        """The graph after the passes, in order; `gradients`: that of the backward pass, made before any op rides."""
        steps = list(self.passes)
        if logits == "last" and last_logits not in steps:
            steps.insert(0, last_logits)
        if gradients and inductor in steps:
            raise InputError(f"runtime {self.name!r}: what a compiler makes of a backward pass is not known")
        if gradients:
            fusing = (place for place, step in enumerate(steps) if step in (ride, whole_stage))
            steps.insert(next(fusing, len(steps)), backward)
        for change in steps:
            maker, made = f"pass {getattr(change, '__name__', change)!r} of runtime {self.name!r}", change(graph)
            if not isinstance(made, Graph):
                raise InputError(f"{maker} must give a graph, not {made!r}")
            graph = made.require_writers(f"{maker}, ")
        graph.require_order(f"runtime {self.name!r}: ")
        return graph

    def __str__(self) -> str:
        return self.name


@cache
def _named(name: str) -> Runtime:
    import yaml

    choose("runtime", name, config_names("runtime"))
    values: dict[str, Any] = yaml.safe_load((config_dir() / "runtime" / f"{name}.yaml").read_text(encoding="utf-8"))
    for key in values:
        choose(f"key of runtime {name!r}:", key, ("passes", "lifetimes", "launch", "products", "only"))
    chosen = (choose(f"pass of runtime {name!r}:", given, PASSES) for given in values.get("passes") or [])
    rule = choose(f"lifetimes of runtime {name!r}:", str(values.get("lifetimes")), LIFETIMES)
    launch, products = str(values.get("launch", LAUNCHES[0])), str(values.get("products", PRODUCTS[0]))
    only = tuple(map(str, values.get("only") or ()))
    return Runtime(name, tuple(PASSES[given] for given in chosen), LIFETIMES[rule], launch, products, only)
