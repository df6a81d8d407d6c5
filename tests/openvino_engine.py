"""Asks OpenVINO: exports small models by optimum-intel, reads the IR, compiles it for the CPU, runs it."""

import logging
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy
import openvino
import torch
import transformers
from openvino_models import config

CORE = openvino.Core()
AS_CHECKED = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}
"""What the engine takes by itself on a CPU without units for 16 bits."""
VIEWS = {"Const", "Input", "Output", "Reshape", "MemoryInput", "MemoryOutput"}
"""What the executed graph lists and nothing runs: constants, ports, other shapes of a tensor."""


def module(fields, dtype=torch.float32):
    """The module of a config.json, every parameter random: equal tensors would be one constant of the file."""
    torch.manual_seed(0)
    known = transformers.AutoConfig.for_model(**fields)
    made = transformers.AutoModelForCausalLM.from_config(known).eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.05)
    return made.to(dtype)


def export(folder, name, dtype=torch.float32):
    """The files of a decoder with its cache in ports."""
    from optimum.exporters.openvino import export_from_model

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    to = Path(folder) / name.replace(" ", "_").replace(",", "")
    export_from_model(module(config(name), dtype), output=to, task="text-generation-with-past", stateful=False)
    return to / "openvino_model.xml"


def stateful(path, name):
    """A decoder whose cache lies inside, of one whose cache is in ports: as optimum-intel makes it."""
    from optimum.exporters.openvino.stateful import patch_stateful

    model = CORE.read_model(path)
    patch_stateful(transformers.AutoConfig.for_model(**config(name)), model)
    return model


def policies():
    """How nncf is asked for what each policy of ours says."""
    import nncf

    modes, adjust = nncf.CompressWeightsMode, nncf.GroupSizeFallbackMode.ADJUST
    fall = {"advanced_parameters": nncf.AdvancedCompressionParameters(group_size_fallback_mode=adjust)}
    return {
        "openvino_int8": {"mode": modes.INT8_ASYM},
        "openvino_int4": {"mode": modes.INT4_ASYM, "group_size": 128, **fall},
        "openvino_int4_g64": {"mode": modes.INT4_ASYM, "group_size": 64, **fall},
        "openvino_int4_sym": {"mode": modes.INT4_SYM, "group_size": 128, **fall},
        "openvino_int4_sym_g64": {"mode": modes.INT4_SYM, "group_size": 64, **fall},
        "openvino_int4_sym_channel": {"mode": modes.INT4_SYM, "group_size": -1},
        "openvino_int4_sym_all": {"mode": modes.INT4_SYM, "group_size": 128, "all_layers": True, **fall},
    }


def compressed(path, policy):
    """The file of a model compressed by nncf."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    made, to = nncf.compress_weights(CORE.read_model(path), **policies()[policy]), path.with_name(f"{policy}.xml")
    openvino.save_model(made, to, compress_to_fp16=False)
    return to


def halved(path):
    """The file of a model in fp16."""
    to = path.with_name("fp16.xml")
    openvino.save_model(CORE.read_model(path), to)
    return to


@dataclass
class File:
    """Bytes of a `.bin`: those of weights, of the rotary frequencies, and of shapes, axes and scalars."""

    all: int
    weights: int
    frequencies: int
    rest: int


def read(path):
    """What a file holds: constants that several ops share are stored once."""
    found = {}
    for layer in ET.parse(path).getroot().iter("layer"):
        if layer.get("type") == "Const":
            data = layer.find("data")
            found[int(data.get("offset"))] = (int(data.get("size")), layer.get("name"), data)
    sizes = Counter()
    for size, name, data in found.values():
        sizes[_kind(name, data)] += size
    total = os.path.getsize(Path(path).with_suffix(".bin"))
    assert sum(sizes.values()) == total
    return File(total, sizes["weights"], sizes["frequencies"], sizes["rest"])


def _kind(name, data):
    shape = [int(x) for x in (data.get("shape") or "").split(",") if x.strip()]
    many = int(numpy.prod(shape)) if shape else 1
    if data.get("element_type") in ("i64", "i32", "boolean") or many == 1:
        return "rest"
    return "frequencies" if "rotary_emb" in name else "weights"


def primitives(model):
    """The types of what the compiled model executes on numbers, and how many primitives work on integers."""
    found, integers = Counter(), 0
    for op in CORE.compile_model(model, "CPU", AS_CHECKED).get_runtime_model().get_ordered_ops():
        told = {key: value.value for key, value in op.get_rt_info().items()}
        empty = op.get_output_size() and 0 in [d.get_max_length() for d in op.get_output_partial_shape(0)]
        if told["layerType"] in VIEWS or empty:
            continue
        if told["outputPrecisions"].startswith(("f", "bf")):
            found[told["layerType"]] += 1
        else:
            integers += 1
    return found, integers


def feeds(model, tokens, past):
    """Inputs of a call of so many tokens after others."""
    given = {
        "input_ids": numpy.ones((1, tokens), numpy.int64),
        "attention_mask": numpy.ones((1, past + tokens), numpy.int64),
        "position_ids": numpy.arange(past, past + tokens)[None].astype(numpy.int64),
        "beam_idx": numpy.zeros(1, numpy.int32),
    }
    for port in (port for port in model.inputs if "past" in port.any_name):
        shape = [
            1 if place == 0 else past if d.is_dynamic else d.get_length() for place, d in enumerate(port.partial_shape)
        ]
        given[port.any_name] = numpy.zeros(shape, numpy.float32)
    return {port.any_name: given[port.any_name] for port in model.inputs}


def ports(path):
    """Bytes of the cache that go in and come out in a step of one token after eight, and of how many ports."""
    model = CORE.compile_model(path, "CPU", AS_CHECKED)
    given = feeds(model, 1, 8)
    came = [value.nbytes for name, value in given.items() if "past" in name]
    went = [value.nbytes for key, value in model(given).items() if "present" in key.any_name]
    return sum(came) + sum(went), len(came), len(went)


def state(model):
    """Bytes of the cache inside, in 16 bits, after eight tokens and one; and how many positions have logits."""
    compiled = CORE.compile_model(model, "CPU", AS_CHECKED)
    request = compiled.create_infer_request()
    positions = request.infer(feeds(compiled, 8, 0))["logits"].shape[1]
    request.infer(feeds(compiled, 1, 8))
    assert str(compiled.get_property("KV_CACHE_PRECISION")) == "<Type: 'float16'>"
    return sum(numpy.prod(state.state.shape) for state in request.query_state()) * 2, positions


def tower(folder, name):
    """The file of a vision tower."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    if name == "CLIP":
        made = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
        run, example = lambda x: made(x).last_hidden_state[:, 1:], torch.zeros(2, 3, 64, 64)
    else:
        made = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)).vision_model.encoder
        run, example = lambda x: made(inputs_embeds=x).last_hidden_state, torch.zeros(2, 16, 128)
    for parameter in made.eval().parameters():
        parameter.data.normal_(0, 0.05)
    to = Path(folder) / f"{name[:4]}.xml"
    openvino.save_model(openvino.convert_model(_Run(made, run), example_input=example), to, compress_to_fp16=False)
    return to


class _Run(torch.nn.Module):
    """A module as a function."""

    def __init__(self, module, run):
        super().__init__()
        self.module, self.run = module, run

    def forward(self, x):
        return self.run(x)


def memory(small, large, tokens):
    """Bytes that a process holds more once `large` has run a prompt, the engine itself warmed up by `small`."""
    told = subprocess.run(
        [sys.executable, __file__, str(small), str(large), str(tokens)], check=True, capture_output=True, text=True
    )
    return int(told.stdout.split()[-1])


def _resident():
    kinds = ("RssAnon", "RssFile")
    return sum(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kinds))


def _run(path, *calls):
    compiled = CORE.compile_model(path, "CPU", AS_CHECKED)
    request = compiled.create_infer_request()
    for tokens in calls:
        request.reset_state()
        request.start_async(feeds(compiled, tokens, 0))
        request.wait()
    return compiled, request


if __name__ == "__main__":
    kept = _run(sys.argv[1], 1, 8)
    before = _resident()
    held = _run(sys.argv[2], 1, int(sys.argv[3]))
    print(_resident() - before)  # noqa: T201
