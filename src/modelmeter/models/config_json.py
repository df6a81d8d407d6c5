"""A model from a config.json as Hugging Face has them: its fields, by the table of `decoders.yaml`.

No field that released files have is guessed: one that is missing is named, and so are one that nothing reads and that
may change the structure, and two that contradict each other. What is built of the numbers: `decoders.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelmeter.errors import InputError, choose
from modelmeter.layers import CausalLM
from modelmeter.models.decoders import causal_lm
from modelmeter.models.model import BaseModel
from modelmeter.models.trace_json import is_trace
from modelmeter.models.traced import traced_model
from modelmeter.models.vlm import text_model

_STORED = ("quantization_config",)
"""Fields of how weights are stored."""
WIDTH = "hidden_size / num_attention_heads"
"""What a table says of a head's width that a file may leave out, though released ones have it."""


@cache
def _table() -> dict[str, Any]:
    import yaml

    text = Path(__file__).with_name("decoders.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def model_types() -> list[str]:
    """The model_types that are supported."""
    return sorted(_table()["types"])


def read_config(name: str) -> dict[str, Any]:
    """The fields of a config.json: a file, the folder of a model, or a hub id where a network is there.

    Raises InputError if it cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix != ".json":
        path = _from_hub(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no JSON, or cut short: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{str(path)!r} must hold the fields of a config.json, not a {type(found).__name__}")
    return found


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json", etag_timeout=3))
    except Exception as error:  # no package, no network, no such model: all are for the user to read
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{name!r} is no file or folder here, and cannot be had from the hub: {reason}") from None


def model_of(config: Any, name: str | None = None, changes: Mapping[str, Any] | None = None) -> BaseModel:
    """The model of a config.json: its fields, or where they are (see `read_config`), called `name` or as the file is.

    `changes` are fields that have other values than the file says. A file that is the JSON of a trace is the model that
    was traced.

    Raises InputError, naming file and field, for what it cannot be made of.
    """
    if config is None:
        raise InputError("model.config must be the path of a config.json, its folder or a hub id")
    given = isinstance(config, Mapping)
    if not given and is_trace(str(config)):
        if changes:
            raise InputError(
                f"{str(config)!r} is of a traced module, whose numbers are fixed, so no {next(iter(changes))}"
            )
        return traced_model(str(config))
    path = Path(str(config))
    source = str(name or "the configuration") if given else str(config)
    own = (
        path.parent.absolute().name
        if path.name == "config.json"
        else path.stem
        if path.suffix == ".json"
        else path.name
    )
    fields = _changed(config if given else read_config(str(config)), changes or {})
    decoder, assumed = decoder_of(fields, source)
    return text_model(name or ("config" if given else own), decoder, notes=assumed, config=fields)


def _changed(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields with others in their place; of a field that holds fields, some."""
    inner = {key: fields.get(key) for key, value in changes.items() if isinstance(value, Mapping)}
    merged = {key: {**found, **changes[key]} for key, found in inner.items() if isinstance(found, Mapping)}
    return {**fields, **changes, **merged}


def decoder_of(fields: Mapping[str, Any], source: str) -> tuple[CausalLM, tuple[str, ...]]:
    """The decoder of a config.json's fields, and what is to be said of those that were not there."""
    try:
        numbers, assumed = _numbers(fields)
        notes = []
        if assumed:
            notes.append(f"not in {source}, so as a {fields['model_type']} has it: {', '.join(dict.fromkeys(assumed))}")
        notes += [f"{key} is not counted; precision= says how weights are stored" for key in _STORED if fields.get(key)]
        built = [str(name) for name in fields.get("architectures") or []]
        if built and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in built):
            notes.append(f"counted is a causal language model, not {', '.join(built)}")
        return causal_lm(numbers), tuple(notes)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _numbers(fields: Mapping[str, Any]) -> tuple[SimpleNamespace, list[str]]:
    """The numbers of a decoder, and which of its fields were not there and what that means."""
    table = _table()
    if "model_type" not in fields:
        raise InputError(f"model_type is missing; supported: {', '.join(model_types())}")
    if any(isinstance(fields.get(key), Mapping) for key in ("text_config", "llm_config", "language_config")):
        raise InputError(
            f"it is of a {fields['model_type']}, a model of several parts; give the fields of its text part"
        )
    kind = choose("model_type", str(fields["model_type"]), table["types"])
    fields = _flat(fields)
    reading = _Reading(fields, kind)
    numbers = table["absent"] | {key: reading.of(key, value) for key, value in table["types"][kind].items()}
    _require_known(fields, kind, reading.read)
    if numbers["window"] == 0 and not numbers["use_window"]:
        numbers["window"] = None  # what transformers writes where it is not used
    numbers["kv_heads"] = numbers["heads"] if numbers["kv_heads"] is None else numbers["kv_heads"]
    if numbers["mlp"] is None and _whole(numbers["hidden"]):
        numbers["mlp"] = 4 * numbers["hidden"]  # n_inner null
    for number in ("qk_norm", "parallel_residual"):
        if number in reading.names:
            _require_kind(reading.names[number], numbers[number], "flag")
    for key, words in table["kinds"].items():
        for number in words.split():
            if key == "flag" and numbers[number] is None:
                numbers[number] = False
            _require_kind(reading.names.get(number, number), numbers[number], key)
    return SimpleNamespace(**numbers, vendor=kind), reading.assumed


_OF_ROPE = ("partial_rotary_factor", "mrope_section")
"""Fields that may stand in rope_parameters."""


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with the share of a head that is rotated and its sections where they stand in rope_parameters."""
    found = dict(fields)
    for key in ("rope_parameters", "rope_scaling"):
        inner = fields.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise InputError(f"{key} must hold fields or be null, not {inner!r}")
        deeper = [part for part in (inner or {}).values() if isinstance(part, Mapping)]
        if any(part.get("partial_rotary_factor", 1) != 1 for part in deeper):
            raise InputError(f"partial_rotary_factor of single kinds of layers in {key} is not supported")
        for name in _OF_ROPE:
            part = (inner or {}).get(name)
            if part is not None and found.setdefault(name, part) != part:
                raise InputError(f"{name} differs from that of {key}")
    return found


@cache
def _plain(text: str) -> Any:
    """What a word of the table means."""
    import yaml

    return yaml.safe_load(text)


class _Reading:
    """What a table's line reads of a file: `read` are the fields, `names` those of numbers, `assumed` what was not
    there."""

    def __init__(self, fields: Mapping[str, Any], kind: str) -> None:
        self.fields, self.kind = fields, kind
        self.read, self.names = {"layer_types"}, dict[str, str]()
        self.assumed: list[str] = []

    def of(self, key: str, value: Any) -> Any:
        """A number of the table: a constant, or the field `$a|b?what its absence means`."""
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        text, optional, absent = value[1:].partition("?")
        names = [name for name in text.split("|") if name != "null"]
        known = self._known(names)
        self.names[key] = names[0]
        if not known and not optional:
            raise InputError(f"{' or '.join(names)} is missing, which a {self.kind} has")
        found, null = next(iter(known.values()), None), "null" in (*text.split("|")[1:], absent)
        if found is not None or (known and null):
            return found
        meant = None if absent == WIDTH else _plain(absent)
        refers = absent.startswith("$")
        if known and not (refers or absent == WIDTH or key == "activation" or isinstance(meant, bool)):
            raise InputError(f"{names[0]} is null, and a {self.kind} has it")
        if not known and not refers and (absent == WIDTH or meant not in (None, False)):
            self.assumed.append(f"{names[0]} {absent}")
        return self.of(key, absent) if refers else meant

    def _known(self, names: list[str]) -> dict[str, Any]:
        """What the file says under these names, which must not differ."""
        self.read.update(names)
        known = {name: self.fields[name] for name in names if name in self.fields}
        if len({(type(value), str(value)) for value in known.values()}) > 1:
            raise InputError(f"{' and '.join(f'{name} {v!r}' for name, v in known.items())} contradict each other")
        return known


def _require_known(fields: Mapping[str, Any], kind: str, read: set[str]) -> None:
    """Raise InputError for a field that nothing reads and that may change the structure, or has another value."""
    only = _table()["only"]["*"] | _table()["only"].get(kind, {})
    silent = set(_table()["silent"]["*"].split()) | set(_table()["silent"].get(kind, "").split())
    for name, value in fields.items():
        if name in only and value not in only[name]:
            valid = " or ".join(json.dumps(v) for v in only[name])
            raise InputError(f"{name} {value!r} is not supported of a {kind}: only {valid}")
        if name in read or name in only or name in silent or name.startswith("_"):
            continue
        if value not in (None, False, "", [], {}):
            raise InputError(f"{name} {value!r} is read by nothing here, and a {kind} may be another one with it")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "whole": ("a whole number of at least 1", lambda v: _whole(v) and v >= 1),
    "whole_or_null": ("a whole number of at least 1 or null", lambda v: v is None or (_whole(v) and v >= 1)),
    "count": ("a whole number of at least 0", lambda v: _whole(v) and v >= 0),
    "any": ("a whole number", _whole),
    "count_or_null": ("a whole number of at least 0 or null", lambda v: v is None or (_whole(v) and v >= 0)),
    "share": ("a number above 0 and at most 1", lambda v: _number(v) and 0 < v <= 1),
    "limit": ("a number above 0 or null", lambda v: v is None or (_number(v) and v > 0)),
    "flag": ("true or false", lambda v: isinstance(v, bool)),
    "name": ("a name", lambda v: isinstance(v, str)),
    "numbers": ("a list of whole numbers or null", lambda v: _all(v, lambda n: isinstance(n, int) and n >= 0)),
    "names": ("a list of names or null", lambda v: _all(v, lambda name: isinstance(name, str))),
}
"""What a number of each kind must be, in words and as a test."""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(values: Any, fits: Callable[[Any], bool]) -> bool:
    return values is None or (isinstance(values, list) and all(map(fits, values)))


def _require_kind(name: str, value: Any, kind: str) -> None:
    """Raise InputError for a number that is not of its kind."""
    wanted, fits = _KINDS[kind]
    if not fits(value):
        raise InputError(f"{name} must be {wanted}, not {value!r}")
