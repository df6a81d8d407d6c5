"""Rows of published measurements, and what each asks in terms of a model, a workload, a device and a runtime.

A row is a line of a CSV with the columns of `measured.csv`, which is shipped: figures as their sources give them. What
a row calls things is looked up in `names.yaml`; what cannot be expressed is refused with the reason, never dropped.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelmeter.catalogue import load_devices
from modelmeter.errors import InputError
from modelmeter.folders import read_once
from modelmeter.measured import engines
from modelmeter.measured.texts import Length, Load, depth_of, devices_of, length_of, load_of, number, parted, size_of

SHIPPED = Path(__file__).with_name("measured.csv")
"""The measurements that come with the project."""
COLUMNS = (
    "id", "category", "model", "quant", "engine", "hardware", "n_gpu", "batch_or_conc", "input_tok", "output_tok",
    "image_mode", "metric", "value", "unit", "source",
)  # fmt: skip
"""Columns that a file of measurements must have; `grade` and `note` may be there."""


@dataclass(frozen=True)
class Question:
    """What a row measures: `quantity` in SI units (seconds, tokens, requests or pages a second, bytes) was `value`.

    `assumed` are the things that the row leaves open, in words.
    """

    row: str
    model: str
    runtime: str
    device: str
    devices: int
    precision: Mapping[str, Any]
    load: Load
    prompt_tokens: int
    decode_steps: int
    image_size: str | None
    quantity: str
    value: float
    assumed: tuple[str, ...] = ()
    page: str | None = None
    """A named document of configs/profile in the place of an image of known size."""
    statistic: str = ""
    """Which figure of many requests: mean, median, p50, p90, p99, or none said."""
    given: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The row itself."""
    copies: int = 1
    """Replicas, each of `devices`, that share the requests."""
    lengths: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """How prompts and answers are spread about their means: `spread` tokens evenly, or quantiles that were seen."""
    count: int | None = None
    """How many requests the run has, where it is told."""
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Settings that the row tells: `seats` and `tokens` of a step."""
    version: tuple[int, ...] = engines.NEWEST
    offline: bool = False
    mode: str | None = None
    """Of an image, for models that have several: how it is cut."""
    depth: int = 0
    """Tokens that stand in the cache before the prompt, where the prompt alone is measured."""
    layered: int = 1
    """Devices that have a part of the layers each, one behind another; a prompt goes through in chunks of `chunk`."""
    chunk: int = 0


def read(path: str | Path = SHIPPED) -> list[dict[str, str]]:
    """The rows of a file. Raises InputError for a file that is none or lacks a column."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
            heads = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"measurements {str(path)!r} cannot be read: {error}") from None
    missing = [column for column in COLUMNS if column not in heads]
    if missing or not rows:
        told = f"lacks the columns {', '.join(missing)}" if missing else "has no row"
        raise InputError(f"measurements {str(path)!r}: it {told}; columns are {', '.join(COLUMNS)}")
    return rows


def names() -> dict[str, Any]:
    """What measurements call things (names.yaml)."""
    found: dict[str, Any] = read_once(Path(__file__).with_name("names.yaml"))
    return found


def _found(kind: str, text: str) -> Any:
    """What a text of a row is called here. Raises InputError where nothing fits."""
    plain = re.sub(r"[\s_:]+", "-", text) if kind == "models" else text
    for pattern, meant in names()[kind].items():
        if match := re.search(pattern, plain, re.IGNORECASE):
            if not meant:
                break
            own = isinstance(meant, dict) and meant.get("weights") == r"\1"
            return {"weights": match.group(0).lower()} if own else meant
    raise InputError(f"no {kind[:-1]} of this project is called {text!r}")


def _runtime(row: Mapping[str, str], device: str) -> str:
    """The runtime of a row: that of an old build where its source says so, else that of its engine on the device."""
    told = f"{row['engine']} | {row['source']} | {row.get('note', '')}"
    old = (name for pattern, name in names()["builds"].items() if re.search(pattern, told, re.IGNORECASE))
    if found := next(old, None):
        return str(found)
    newest = str(_found("engines", row["engine"]))
    if newest not in names()["backends"]:
        return newest
    [on] = load_devices([device])
    here = f"{row['engine']} | {on.architecture}"
    backends = names()["backends"][newest].items()
    return str(next(name for pattern, name in backends if re.search(pattern, here, re.IGNORECASE)))


def question(row: Mapping[str, str], devices: Mapping[str, str]) -> Question:
    """What a row asks; `devices` maps patterns of hardware to names of the catalogue. Raises InputError: the reason."""
    told: list[str] = []
    _require_told(row)
    device, model, quantity = _device(row, devices), _found("models", row["model"]), _quantity(row)
    workload = _workload(row)
    image, page, mode = _image(row, told)
    prompt, given = _tokens(row, bool(image or page), workload, told)
    devices_each, copies = workload.get("parallel") or devices_of(row)
    value, quantity = _value(row, quantity, devices_each * copies)
    layered, chunk = _layered(row, devices_each)
    depth = depth_of(row["input_tok"], row["output_tok"], row["metric"])
    behind = depth if quantity in ("prefill_tokens", "ttft") else 0
    load = load_of(row["batch_or_conc"] or "max" * row["metric"].endswith("_max"), told)
    if quantity == "e2e" and load != Load("batch", 1) and not re.search("e2e|latency|request", row["metric"].lower()):
        raise InputError(f"{row['metric']} of many requests is not told, that of each is")
    answer = _answer(row, given, quantity, load, (image, page), told)
    spreads = {"prompt": prompt.spread, "output": answer.spread}
    limits = {key: found for key, pattern in LIMITS.items() if (found := _limit(pattern, row.get("note", "")))}
    offline = bool(re.search(OFFLINE, f"{row['engine']} {row['batch_or_conc']}", re.IGNORECASE))
    runtime = _runtime(row, device)
    return Question(
        row["id"], model, runtime, device, devices_each // layered, _precision(row, runtime, told), load,
        prompt.mean + depth - behind, answer.mean, image, quantity, value, tuple(told), page,
        _statistic(row["metric"]), dict(row), copies, workload.get("lengths") or spreads, _count(row),
        limits | workload.get("limits", {}), engines.version_of(row["engine"], row["source"]), offline, mode, behind,
        layered, chunk,
    )  # fmt: skip


def _device(row: Mapping[str, str], devices: Mapping[str, str]) -> str:
    """The device of a row, however many of it there are."""
    hardware = re.sub(r"\b\d{1,3}\s*[x×*]\s*(?=[a-z])", "", row["hardware"], flags=re.IGNORECASE)
    device = next((name for pattern, name in devices.items() if re.search(pattern, hardware, re.IGNORECASE)), None)
    if device is None:
        raise InputError(f"no device of the catalogue is called {row['hardware']!r}")
    return device


def _answer(
    row: Mapping[str, str],
    given: Length | None,
    quantity: str,
    load: Load,
    pictured: tuple[str | None, str | None],
    told: list[str],
) -> Length:
    """Tokens of the answer: as told, as of a page's text, or none where nothing hangs on them."""
    if given is not None:
        return given
    image, page = pictured
    if (image and quantity in TEXTS) or (page and quantity in (*TEXTS, "e2e", "requests")):
        told.append(f"an answer of {names()['assumed']['answer']} tokens")
        return Length(names()["assumed"]["answer"])
    if not (image or page) and quantity in ANSWERED[load.kind == "batch"]:
        raise InputError(f"tokens of the answer are not told, and {row['metric']} hangs on them")
    return Length(0)


def _require_told(row: Mapping[str, str]) -> None:
    """Raise InputError for a row that is about something else than its model on its device."""
    text = " | ".join(row[key] for key in ("model", "quant", "engine", "hardware", "batch_or_conc"))
    for pattern, reason in names()["refused"].items():
        if match := re.search(pattern, text, re.IGNORECASE):
            raise InputError(f"{reason} ({match.group(0).strip(' |')!r})")


def _quantity(row: Mapping[str, str]) -> str:
    """What a row measures, by the name of its metric, or by name and unit ("throughput", "pp512", "qps")."""
    named = re.sub(r"[/ ]", "_", f"{row['metric']}_{row['unit']}")
    known = any(re.search(pattern, row["metric"], re.IGNORECASE) for pattern in names()["metrics"])
    try:
        return str(_found("metrics", row["metric"] if known else named))
    except InputError:
        raise InputError(f"no metric of this project is called {row['metric']!r}") from None


def _layered(row: Mapping[str, str], many: int) -> tuple[int, int]:
    """Devices that have a part of the layers each, 1 where each matrix is shared, and the tokens of a chunk."""
    if many == 1 or re.search(r"\btp\b|\btp\s*[=-]?\s*\d|tensor|row[- ]split|sm[- ]row", row["engine"], re.IGNORECASE):
        return 1, 0
    known = (int(chunk) for name, chunk in names()["layered"].items() if re.search(name, row["engine"], re.IGNORECASE))
    chunk = next(known, None)
    return (1, 0) if chunk is None else (many, chunk)


ANSWERED = (
    frozenset({"decode_tokens", "prompt_tokens", "all_tokens", "e2e", "requests", "pages"}),
    frozenset({"prompt_tokens", "all_tokens", "e2e", "decode", "requests", "pages"}),
)
"""What hangs on the length of answers where many requests are served, and of one by itself."""
TEXTS = ("decode_tokens", "all_tokens", "pages", "decode")
"""What is of all the text of a page, where the length of an answer is not told."""
LIMITS = {"seats": r"max_num_seqs\D{0,3}(\d+)", "tokens": r"max_(?:num_)?batched(?:_tokens)?\D{0,3}(\d+)"}
OFFLINE = r"offline|\bmax\b(?![ _-]*(?:conc|num|seqs|in[ -]flight))|\bbatch\b"
"""A rate of requests that is infinite is a server's."""


def _limit(pattern: str, note: str) -> int | None:
    match = re.search(pattern, note, re.IGNORECASE)
    return int(match.group(1)) if match else None


def _count(row: Mapping[str, str]) -> int | None:
    """How many requests a run has ("ShareGPT x300", "100 requests")."""
    text = f"{row['input_tok']} {row['batch_or_conc']} {row.get('note', '')}"
    match = re.search(r"\b(\d{2,6})\s*(?:requests|prompts|reqs)\b|\bx\s*(\d{2,6})\b", text, re.IGNORECASE)
    return int(match.group(1) or match.group(2)) if match else None


def _workload(row: Mapping[str, str]) -> Mapping[str, Any]:
    """What is known of the benchmark of a source beside its rows."""
    text = f"{row['source']} {row['input_tok']} {row['output_tok']}"
    known = (own for pattern, own in names()["workloads"].items() if re.search(pattern, text, re.IGNORECASE))
    return next(known, {})


def _precision(row: Mapping[str, str], runtime: str, told: list[str]) -> dict[str, Any]:
    """Formats by role; an engine may have its own of weights, a cache to go with them; llama.cpp's are its files'."""
    files = runtime.startswith("llama_cpp")
    if not files and re.fullmatch(r"|-|none|n/?a|default|native|unquanti[sz]ed", row["quant"].lower()):
        told.append("weights in 16 bits")
        precision = {"weights": "bf16"}
    else:
        precision = _formats("files" if files else "formats", runtime, row["quant"])
    own = engines.found(row["engine"])
    if own.get("weights") and precision["weights"] == "fp8_channel":
        precision["weights"] = own["weights"]
    if own.get("kv") and re.search("(?<!mx)fp[48]", row["quant"], re.IGNORECASE):
        precision["kv"] = own["kv"]
        told.append(f"its KV cache in {own['kv']}, as the published runs have it")
    formats = "(fp8|int8|bf16|fp16|q8_0|q4_0)"
    if match := re.search(rf"kv\W{{0,3}}{formats}|\W{formats}\W?kv\b", row["quant"], re.IGNORECASE):
        precision["kv"] = (match.group(1) or match.group(2)).lower()
    return precision


def _formats(kind: str, runtime: str, quant: str) -> dict[str, Any]:
    """Formats by what they are called; OpenVINO's graphs have those that nncf compresses to."""
    if runtime.startswith("openvino"):
        for pattern, meant in names()["graphs"].items():
            if re.search(pattern, quant, re.IGNORECASE):
                return dict(meant)
    return dict(_found(kind, quant))


def _value(row: Mapping[str, str], quantity: str, many: int) -> tuple[float, str]:
    """The value in SI units, and what it is of: a time that is told as a rate, or the other way round, is turned."""
    unit = re.sub(r"\s+", "", row["unit"].lower().replace("µ", "u").replace("μ", "u"))
    known = names()["units"]
    unit = names()["aliases"].get(unit, unit)
    if unit not in known:
        raise InputError(f"unit {row['unit']!r} is none of {', '.join(known)}")
    factor, kind = known[unit]
    value = number(row["value"]) * factor * (many if unit.endswith("/gpu") else 1)
    if unit.endswith("/user"):
        quantity = "tpot"
    wanted = names()["kinds"][quantity]
    if wanted != kind and kind in TURNED.get(quantity, ()):
        value, kind = 1 / value, wanted
    if kind != wanted:
        raise InputError(f"{row['metric']!r} is no {kind}, which {row['unit']!r} is a unit of")
    return value, quantity


TURNED = {"pages": ("time",), "requests": ("time",), "tpot": ("rate", "tokens")}
"""Quantities that are told as their inverse too: seconds a page, tokens a second of a user."""


def _statistic(metric: str) -> str:
    match = re.search(r"mean|avg|median|(?<![a-z])p\d\d(?!\d)", metric.lower())
    found = match.group(0).replace("avg", "mean") if match else ""
    if re.search("itl|inter_token", metric, re.IGNORECASE) and found not in ("", "mean"):
        raise InputError(f"{metric}: percentiles of the gaps between tokens are not told, those of requests are")
    return found


def _image(row: Mapping[str, str], told: list[str]) -> tuple[str | None, str | None, str | None]:
    """The size of an image as WIDTHxHEIGHT, or the name of a document that stands for it, and how it is cut."""
    text = row["image_mode"]
    if re.search(r"image|page|view|\dpx|\d{2} ?[x×] ?\d{2}", row["input_tok"], re.IGNORECASE):
        text += f" {row['input_tok']}"
    if re.search(r"text[- ]only|no[- ]images?\b|without images?", text, re.IGNORECASE):
        return None, None, None
    mode = _called("modes", text) or None
    if found := size_of(text):
        if not re.search(rf"{found.partition('x')[0]}\D+\d", text):
            told.append(f"an image of {text.strip()} is {found}")
        return found, None, mode
    if re.search(r"image|page|omnidocbench", text, re.IGNORECASE) or row["category"] in ("OCR", "DSOCR"):
        page = _called("documents", text) or names()["assumed"]["page"]
        told.append(f"a page as {page}")
        return None, page, mode
    return None, None, None


def _called(kind: str, text: str) -> str:
    """What a text says of an image by the table of this name, nothing where it says nothing."""
    found = (meant for pattern, meant in names()[kind].items() if re.search(pattern, text, re.IGNORECASE))
    return str(next(found, ""))


def _drawn(asked: Length, least: float) -> Length:
    """Lengths between a share of what is asked for and this."""
    return Length(round(asked.mean * (1 + least) / 2), asked.mean * (1 - least) / 2)


def _tokens(
    row: Mapping[str, str], pictured: bool, workload: Mapping[str, Any], told: list[str]
) -> tuple[Length, Length | None]:
    """Text tokens of the prompt and tokens of the answer, None where it is not told."""
    assumed = names()["assumed"]
    if "lengths" in workload:
        prompt, answer = (Length(round(sum(own) / len(own))) for own in workload["lengths"].values())
        told.append(f"lengths as {workload['title']} draws them, {prompt.mean} and {answer.mean} on average")
        return prompt, answer
    texts = parted(row["input_tok"], row["output_tok"])
    answer_told = length_of(texts[1], "answer", 0)
    if pictured:  # tokens of the input are mostly the image's, which follow from its size
        told.append(f"{assumed['prompt']} tokens of text beside the image")
        return Length(assumed["prompt"]), answer_told
    prompt_told = length_of(texts[0], "prompt", 0)
    if prompt_told is None:
        told.append(f"a prompt of {assumed['short']} tokens")
        prompt_told = Length(assumed["short"])
    drawn = answer_told and any(one.mean % 2**5 and one.mean % 100 for one in (prompt_told, answer_told))
    if answer_told and (least := workload.get("least")):
        told.append(f"lengths drawn evenly from {least:g} of theirs, as {workload['title']} does")
        prompt_told, answer_told = (_drawn(one, least) for one in (prompt_told, answer_told))
    if answer_told and drawn and workload.get("uniform"):
        told.append(f"lengths drawn evenly up to twice their means, as {workload['title']} does")
        prompt_told, answer_told = (one._replace(spread=one.mean - 1) for one in (prompt_told, answer_told))
    return prompt_told, answer_told
