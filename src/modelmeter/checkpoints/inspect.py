"""A real file of weights compared with a model: tensors that are missing, extra, differently shaped or typed, bytes.

With no model named, the model is built from the file's own metadata, or from the config.json beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.checkpoints.called import Wanted, alike, alike_folded, alike_stacked, decoders, is_decoders, towers
from modelmeter.checkpoints.header import FileTensor, Header
from modelmeter.checkpoints.layout import graphs_of, layout_of, names
from modelmeter.checkpoints.safetensors import INDEX, read_index, read_safetensors
from modelmeter.checkpoints.split import read_parts
from modelmeter.errors import InputError, choose
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.model import BaseModel
from modelmeter.models.vlm import text_model
from modelmeter.programs.formats import FORMATS, Format
from modelmeter.programs.policies import POLICIES, of_decoder
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
    """What differs between a file and a model: its decoder, of a safetensors file its towers too if their names are
    known; what is compared by number alone is told by `beside`."""
    if header.kind == "gguf":
        policy = policy_of(header)
        layout = layout_of(model, policy or "f32").tensors
        stored = {t.name: t.format if policy else None for t in layout}
        return sorted(_compared([Wanted(t.name, t.shape) for t in layout], header.tensors, stored, alike))
    told = _told_format(model)
    its = {name: t for name, t in header.tensors.items() if is_decoders(header, name)}
    found = list(_compared(list(decoders(header, model)), its, dict.fromkeys(its, told), alike_stacked))
    tower = towers(header, model)
    if tower is not None:
        others = {name: t for name, t in header.tensors.items() if name not in its}
        found += _compared(tower, others, dict.fromkeys(others, told), alike_folded)
    return sorted(found)


def _compared(
    wanted: list[Wanted], found: Mapping[str, FileTensor], stored: Mapping[str, Format | None],
    same: Callable[[tuple[int, ...], tuple[int, ...]], bool],
) -> Iterator[Difference]:  # fmt: skip
    """Differences of tensors, in formats too where one is known."""
    shapes = dict(wanted)
    for name in shapes.keys() | found.keys():
        if name not in found:
            yield Difference("missing", name, _shape(shapes[name]))
        elif name not in shapes:
            yield Difference("extra", name, "", _shape(found[name].shape))
        elif not same(shapes[name], found[name].shape):
            yield Difference("shape", name, _shape(shapes[name]), _shape(found[name].shape))
        else:
            form, its = stored[name], found[name].format
            if form is not None and form is not its:
                yield Difference("format", name, form.name, its.name)


def _told_format(model: BaseModel) -> Format | None:
    """The format that a config.json tells, if it does."""
    fields: Mapping[str, Any] = getattr(model, "config", None) or {}
    told = str(fields.get("dtype") or fields.get("torch_dtype") or "").removeprefix("torch.")
    return FORMATS.get({"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(told, ""))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def beside(header: Header, model: BaseModel) -> tuple[int, int]:
    """Elements beside the decoder: those of the file, and those of the model."""
    its = sum(
        t.elements for name, t in header.tensors.items() if header.kind != "gguf" and not is_decoders(header, name)
    )
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
    lines += _typed_otherwise(header, model)
    its, ours = beside(header, model)
    if (its or (ours and header.kind != "gguf")) and (header.kind == "gguf" or towers(header, model) is None):
        lines.append(
            f"beside the decoder the file has {si(its, '')} parameters, the model {si(ours, '')} ({its - ours:+,})"
        )
    return "\n".join([*lines, *model.notes])


def _typed_otherwise(header: Header, model: BaseModel) -> list[str]:
    """Tensors of a safetensors file in another format than most of its elements, where the model tells none."""
    if header.kind == "gguf" or _told_format(model) is not None:
        return []
    elements: dict[str, int] = {}
    for tensor in header.tensors.values():
        elements[tensor.format.name] = elements.get(tensor.format.name, 0) + tensor.elements
    most = max(elements, key=lambda name: elements[name], default="")
    others = [t for t in header.tensors.values() if t.format.name != most]
    told = [f"  {t.name}  {t.format.name}" for t in others[:MOST]] + [f"  and {len(others) - MOST} more"] * (
        len(others) > MOST
    )
    return [f"typed otherwise than {most}, which most is: {len(others)}", *told] if others else []


def _counted(differences: list[Difference]) -> str:
    counts = {kind: sum(d.kind == kind for d in differences) for kind in dict.fromkeys(d.kind for d in differences)}
    return (
        ", ".join(f"{many} {kind}" for kind, many in counts.items()) or "every tensor of the decoder is as in the model"
    )


def _sides(d: Difference) -> str:
    return " ".join(part for part in (f"model {d.model}" * bool(d.model), f"file {d.file}" * bool(d.file)) if part)
