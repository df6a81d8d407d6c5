"""Traces of real modules of transformers, recorded here on the CPU, and what each operator really belongs to.

Every submodule runs inside a range of its own name, so that the trace itself says whose an operator is: names of
modules, which no alignment has seen.
"""

import re
from contextlib import ExitStack

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MODULE = "module "
ROLES = (
    (r"embed_tokens$", r"^embedding "),
    (r"(self_attn|attn)\.([qkvo])_proj$", r"W_{1}\["),
    (r"(gate|up|down)_proj$", r"W_{0}\["),
    (r"lm_head$", r"^head "),
    (r"(input_layernorm|layer_norm1)$", r"norm1 "),
    (r"(post_attention_layernorm|layer_norm2)$", r"norm2 "),
    (r"([qk])_norm$", r"\.attn\.norm_{0} |\.attn\.{0}_norm "),
    (r"rotary(_pos)?_emb$", r"rotary "),
    (r"layers\.\d+\.self_attn$", r"\.attn "),
    (r"layers\.\d+\.mlp(\.act_fn|\.activation_fn)?$", r"\.mlp "),
    (r"fc([12])$", r"W_{0}\["),
    (r"out_proj$", r"W_out\["),
    (r"layers\.\d+$", r"layers\w*(\.each)? "),
    (r"layers\.\d+\.mlp\.experts(\.act_fn)?$", r"\.mlp\.experts "),
    (r"layers\.\d+\.mlp\.shared_experts(\.act_fn)?$", r"\.mlp\.shared "),
    (r"layers\.\d+\.mlp\.gate$", r"\.mlp\.gate "),
    (r"(model\.|^0\.|^)norm$", r"^decoder\.norm "),
    (r"pre_layrnorm$", r"norm "),
    (r"embeddings|patch_embed", r"embeddings|^vit\.patch "),
    (r"blocks\.\d+\.norm([12])$", r"norm{0} "),
    (r"blocks\.\d+\.attn", r"\.attn"),
    (r"blocks\.\d+\.mlp\.fc([12])$", r"W_{0}\["),
    (r"blocks\.\d+\.mlp", r"\.mlp "),
    (r"blocks\.\d+$", r"blocks0\.each "),
    (r"merger", r"^projector"),
    (r"^1$", r"^head "),
    (r"^0?$", r"^vit|^decoder|^projector"),
)
"""What the name of a module says of the path and equation of a kernel ({0}: what its groups found)."""


def recorded(path, runs, module, shapes=True, named=True):
    """Record calls, each with the name of its stage and what makes its inputs, and write the trace."""
    with torch.no_grad(), ExitStack() as stack:
        for name, one in module.named_modules() if named else ():
            stack.enter_context(_within(one, f"{MODULE}{name}"))
        for _, make, run in runs[:2]:
            run(*make())  # what is made once is made
        given = [make() for _, make, _ in runs]
        with profile(activities=[ProfilerActivity.CPU], record_shapes=shapes) as seen:
            for (stage, _, run), one in zip(runs, given, strict=True):
                with record_function(stage):
                    run(*one)
    seen.export_chrome_trace(str(path))
    return path


class _within:
    """While it is open, a module runs inside a range."""

    def __init__(self, module, name):
        self.module, self.name, self.forward = module, name, module.forward

    def __enter__(self):
        def forward(*args, **kwargs):
            with record_function(self.name):
                return self.forward(*args, **kwargs)

        self.module.forward = forward

    def __exit__(self, *error):
        self.module.__dict__.pop("forward", None)


def modules_of(trace):
    """For each that ran the name of the innermost module around it."""
    ranges = sorted((r for r in trace.ranges if r.name.startswith(MODULE)), key=lambda r: r.start)
    found = []
    for one in trace.ran:
        around = [r for r in ranges if r.start <= one.launched < r.end]
        found.append(max(around, key=lambda r: r.start).name.removeprefix(MODULE) if around else None)
    return found


def is_right(name, kernel):
    """Whether a kernel is one of a module's; None where the names do not tell."""
    for pattern, wanted in ROLES:
        found = re.search(pattern, name or "")
        if found:
            said = wanted.replace("{0}", found.group(1) or "") if "{0}" in wanted else wanted
            said = said.replace("{1}", found.group(2)) if "{1}" in said else said
            return bool(re.search(said, f"{kernel.path} {kernel.what}"))
    return None


def shares(ran, places, names, kernels):
    """The shares of time of what is laid beside a kernel of its own module, and of what is laid beside any."""
    total = sum(one.seconds for one in ran)
    told = [
        (one, is_right(name, kernels[place])) for one, place, name in zip(ran, places, names, strict=True) if place >= 0
    ]
    unknown = {
        name
        for (_, said), name in zip(told, (n for n, p in zip(names, places, strict=True) if p >= 0), strict=True)
        if said is None
    }
    assert not unknown, unknown
    return sum(one.seconds for one, said in told if said) / total, sum(one.seconds for one, _ in told) / total
