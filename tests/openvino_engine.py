"""Asks OpenVINO: exports small models by optimum-intel, reads the IR, compiles it for the CPU, runs it."""

import logging
import os
import subprocess
import sys
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


def compressed(path, to, **how):
    """The file of a model compressed by nncf."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    made = nncf.compress_weights(CORE.read_model(path), **how)
    openvino.save_model(made, to, compress_to_fp16=False)
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
    for op in CORE.compile_model(model, "CPU").get_runtime_model().get_ordered_ops():
        told = {key: value.value for key, value in op.get_rt_info().items()}
        empty = op.get_output_size() and 0 in [d.get_max_length() for d in op.get_output_partial_shape(0)]
        if told["layerType"] in VIEWS or empty:
            continue
        if told["outputPrecisions"].startswith(("f", "bf")):
            found[told["layerType"]] += 1
        else:
            integers += 1
    return found, integers
