"""A real file of weights compared with a model: tensors that are missing, extra, differently shaped or typed, bytes.

With no model named, the model is built from the file's own metadata, or from the config.json beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.checkpoints.header import FileTensor, Header
from modelmeter.checkpoints.layout import decoder_of, graphs_of, layout_of, names
from modelmeter.checkpoints.safetensors import INDEX, read_index, read_safetensors
from modelmeter.checkpoints.split import read_parts
from modelmeter.errors import InputError, choose
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.model import BaseModel
from modelmeter.models.vlm import text_model
from modelmeter.programs.policies import POLICIES, of_decoder, placed
from modelmeter.programs.weights import weights_of
from modelmeter.report.tables import align, si

MOST = 10
"""Tensors of a kind of difference that are listed."""


class Difference(NamedTuple):
    """A tensor that differs: `kind` is missing, extra, shape or format; what the model and the file have."""

    kind: str
    name: str
    model: str = ""
    file: str = ""


def read_header(name: str) -> Header:
    """The header of a .gguf, a .safetensors, its index, or the folder of such. Raises InputError."""
    path = Path(name)
    if path.is_dir():
        found = [*sorted(path.glob(f"*{INDEX}")), *sorted(path.glob("*.safetensors")), *sorted(path.glob("*.gguf"))]
        if not found:
            raise InputError(f"{name!r} has no .safetensors, no index of such and no .gguf")
        path = found[0]
    if path.name.endswith(INDEX):
        return read_index(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix != ".gguf":
        raise InputError(f"{name!r} must be a .gguf, a .safetensors, a {INDEX[1:]} or a folder of such")
    return read_parts(path)


def policy_of(header: Header) -> str:
    """The policy that a GGUF file says that it is of ("": none that is known)."""
    kind = header.metadata.get("general.file_type")
    return next((name for name, policy in POLICIES.items() if policy["file_type"] == kind and kind is not None), "")


def model_in(header: Header) -> BaseModel:
    """The model of a file's own metadata, or of the config.json beside it. Raises InputError."""
    path = Path(header.path)
    if header.kind != "gguf":
        if not (path.parent / "config.json").is_file():
            raise InputError(
                f"{header.path!r} does not say of what model it is; name one, or put its config.json beside"
            )
        return model_of(str(path.parent / "config.json"))
    known = names()["architectures"]
    kind = choose(f"general.architecture of {header.path!r}:", str(header.metadata.get("general.architecture")), known)
    fields: dict[str, Any] = {}
    for field, told in known[kind].items():
        value = _told(header, kind, str(told), fields)
        if value is not None:
            fields[field] = value
    if "family" not in fields:
        return model_of(_windows(header, kind, fields), path.stem)
    fields["moe_layers"] -= fields["dense_layers"]
    return text_model(path.stem, component("decoder", fields))


def _windows(header: Header, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, with what llama.cpp fixes in code of a kind with windows."""
    return fields | ({"sliding_window_pattern": 6} if kind == "gemma3" else {})


def _told(header: Header, kind: str, told: str, fields: Mapping[str, Any]) -> Any:
    """The value of a line of the table; None where it may be missing and is."""
    if told.startswith("$"):
        key, optional = f"{kind}.{told[1:].removesuffix('?')}", told.endswith("?")
        value = header.metadata.get(key)
        if value is None and not optional:
            raise InputError(f"{header.path!r} lacks the key {key!r}, which a {kind} has")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InputError(
                f"{header.path!r}: key {key!r} must be a whole number, the same of all layers, not {value!r:.80}"
            )
        return value
    word, _, name = told.partition(" ")
    name = name.format(**fields)
    if word in ("has", "not"):
        return (name in header.tensors) == (word == "has")
    if word == "rows":
        if name not in header.tensors or len(header.tensors[name].shape) < 2:
            raise InputError(f"{header.path!r} lacks the matrix {name!r}, which a {kind} has")
        return header.tensors[name].shape[1]
    return told


def compare(header: Header, model: BaseModel) -> list[Difference]:
    """What differs between a file and a model's decoder; the vision part of a file is left to `beside`."""
    policy = policy_of(header) if header.kind == "gguf" else ""
    if header.kind == "gguf":
        wanted = {t.name: t for t in layout_of(model, policy or "f32").tensors}
    else:
        wanted = dict(_in_safetensors(header, model))
    found = {
        name: tensor for name, tensor in header.tensors.items() if header.kind == "gguf" or _decoders(header, name)
    }
    differences = [Difference("missing", name, _shape(wanted[name])) for name in wanted.keys() - found.keys()]
    differences += [Difference("extra", name, "", _shape(found[name])) for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        ours, its = wanted[name], found[name]
        if _plain(ours) != _plain(its):
            differences.append(Difference("shape", name, _shape(ours), _shape(its)))
        elif policy and ours.format is not its.format:
            differences.append(Difference("format", name, ours.format.name, its.format.name))
    return sorted(differences)


def _plain(tensor: FileTensor) -> tuple[int, ...]:
    """A shape without axes of 1."""
    return tuple(side for side in tensor.shape if side != 1)


def _shape(tensor: FileTensor) -> str:
    return "x".join(map(str, tensor.shape))


def _prefix(header: Header) -> str:
    """What stands before the names of a decoder's tensors in a safetensors file."""
    ending = str(names()["safetensors"]["W_tok"])
    return next((name.removesuffix(ending) for name in header.tensors if name.endswith(ending)), "model.")


def _decoders(header: Header, name: str) -> bool:
    """Whether a tensor of a safetensors file is of the decoder."""
    own = name.removeprefix(_prefix(header))
    begins = re.match(r"(embed_tokens|norm|final_layernorm|layers)\.", own)
    return bool((begins and name.startswith(_prefix(header))) or re.search(r"(^|\.)lm_head\.", name))


def _in_safetensors(header: Header, model: BaseModel) -> Iterator[tuple[str, FileTensor]]:
    """The decoder's tensors as safetensors files call them, a matrix an expert; formats are those of the file."""
    form, table, taken = next(iter(header.tensors.values())).format, names()["safetensors"], set[str]()
    heads = [name for name in header.tensors if name.endswith("lm_head.weight")]
    for p in sorted(placed(decoder_of(model)), key=lambda p: p.own.startswith("norm1")):
        if p.own == "head.W_head":
            yield (heads or ["lm_head.weight"])[0], FileTensor("", p.weight.shape, form, 0)
            continue
        if p.own not in table and "W_" not in p.own:
            continue
        calls = [_prefix(header) + call for call in choose("tensor", p.own, table) and table[p.own].split()]
        experts = p.weight.shape[2] if "{e}" in calls[0] and len(p.weight.shape) > 2 else 1
        there = (c for c in calls if c.format(p.layers[0], e=0) in header.tensors.keys() - taken)
        call = next(there, calls[0])
        taken.add(call.format(p.layers[0], e=0))
        for i in p.layers:
            for e in range(experts):
                shape = p.weight.shape[:2] if experts > 1 else p.weight.shape
                yield call.format(i, e=e), FileTensor("", shape, form, 0)


def beside(header: Header, model: BaseModel) -> tuple[int, int]:
    """Elements beside the decoder: those of the file, and those of the model."""
    its = sum(t.elements for name, t in header.tensors.items() if header.kind != "gguf" and not _decoders(header, name))
    ours: dict[str, int] = {}
    for graph in graphs_of(model):
        for name, weight in weights_of(graph).items():
            if "W_" in name and not of_decoder([name]):
                elements = weight.times
                for side in weight.shape:
                    elements *= side
                ours[name] = elements
    return its, sum(ours.values())


def header_text(header: Header) -> str:
    """A file as text: its tensors by format, its header."""
    rows: dict[str, list[int]] = {}
    for tensor in header.tensors.values():
        row = rows.setdefault(tensor.format.name, [0, 0, 0])
        for place, many in enumerate((1, tensor.elements, tensor.bytes)):
            row[place] += many
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)] if rows else [0, 0, 0]
    cells = [["format", "tensors", "parameters", "bytes", "bits"]]
    for name, (many, elements, size) in rows.items():
        bits = f"{size * 8 / elements:.4g}" if elements else "-"
        cells.append([name, str(many), f"{elements:,}", f"{size:,}", bits])
    policy = f" as {policy_of(header)}" if header.kind == "gguf" and policy_of(header) else ""
    kind = f"{header.metadata.get('general.architecture', '')} {header.kind}".strip()
    told = f"{header.metadata_bytes:,} bytes of metadata, {header.entry_bytes:,} of the list of tensors"
    return f"{header.path}: {kind}{policy}, {header.file_bytes:,} bytes; {told}\n\n{align(cells)}"


def comparison_text(header: Header, model: BaseModel) -> str:
    """What differs between a file and a model, as text."""
    differences = compare(header, model)
    lines = [f"compared with {model.name}: {_counted(differences)}"]
    for kind in dict.fromkeys(d.kind for d in differences):
        those = [d for d in differences if d.kind == kind]
        lines += [f"  {kind:8}{d.name}  {_sides(d)}" for d in those[:MOST]]
        lines += [f"  and {len(those) - MOST} more"] * (len(those) > MOST)
    its, ours = beside(header, model)
    if its or (ours and header.kind != "gguf"):
        lines.append(
            f"beside the decoder the file has {si(its, '')} parameters, the model {si(ours, '')} ({its - ours:+,})"
        )
    return "\n".join([*lines, *model.notes])


def _counted(differences: list[Difference]) -> str:
    counts = {kind: sum(d.kind == kind for d in differences) for kind in dict.fromkeys(d.kind for d in differences)}
    return (
        ", ".join(f"{many} {kind}" for kind, many in counts.items()) or "every tensor of the decoder is as in the model"
    )


def _sides(d: Difference) -> str:
    return " ".join(part for part in (f"model {d.model}" * bool(d.model), f"file {d.file}" * bool(d.file)) if part)
