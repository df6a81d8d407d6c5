"""Rows of published measurements, and what each asks in terms of a model, a workload, a device and a runtime.

A row is a line of a CSV with the columns of `measured.csv`, which is shipped: figures as their sources give them. What
a row calls things is looked up in `names.yaml`; what cannot be expressed is refused with the reason, never dropped.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from modelmeter.errors import InputError

SHIPPED = Path(__file__).with_name("measured.csv")
"""The measurements that come with the project."""
COLUMNS = (
    "id", "category", "model", "quant", "engine", "hardware", "n_gpu", "batch_or_conc", "input_tok", "output_tok",
    "image_mode", "metric", "value", "unit", "source",
)  # fmt: skip
"""Columns that a file of measurements must have; `grade` and `note` may be there."""


class Load(NamedTuple):
    """How requests come: `batch` of so many at once, `closed` with so many in flight, `most`, or `open` at a rate."""

    kind: str
    size: float = 1


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


@cache
def names() -> dict[str, Any]:
    """What measurements call things (names.yaml)."""
    import yaml

    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text(encoding="utf-8"))
    return found


def _found(kind: str, text: str) -> Any:
    """What a text of a row is called here. Raises InputError where nothing fits."""
    for pattern, meant in names()[kind].items():
        if match := re.search(pattern, text, re.IGNORECASE):
            own = isinstance(meant, dict) and meant.get("weights") == r"\1"
            return {"weights": match.group(0).lower()} if own else meant
    raise InputError(f"no {kind[:-1]} of this project is called {text!r}")


def _runtime(row: Mapping[str, str]) -> str:
    """The runtime of a row: that of an old build where its source says so, else that of its engine."""
    told = f"{row['engine']} | {row['source']} | {row.get('note', '')}"
    old = (name for pattern, name in names()["builds"].items() if re.search(pattern, told, re.IGNORECASE))
    return next(old, None) or str(_found("engines", row["engine"]))


def question(row: Mapping[str, str], devices: Mapping[str, str]) -> Question:
    """What a row asks; `devices` maps patterns of hardware to names of the catalogue. Raises InputError: the reason."""
    told: list[str] = []
    device = next(
        (name for pattern, name in devices.items() if re.search(pattern, row["hardware"], re.IGNORECASE)), None
    )
    if device is None:
        raise InputError(f"no device of the catalogue is called {row['hardware']!r}")
    model, quantity = _found("models", row["model"]), _found("metrics", row["metric"])
    image, page = _image(row, told)
    prompt, steps = _tokens(row, bool(image or page), told)
    unit = row["unit"].lower()
    if unit not in names()["units"]:
        raise InputError(f"unit {row['unit']!r} is none of {', '.join(names()['units'])}")
    many = _whole(row["n_gpu"]) or 1
    factor = names()["units"][unit] * (many if unit.endswith("/gpu") else 1)
    runtime = _runtime(row)
    precision = dict(_found("files" if runtime.startswith("llama_cpp") else "formats", row["quant"]))
    if re.search(r"tensorrt|trt", row["engine"], re.IGNORECASE) and "fp" in row["quant"].lower():
        precision |= {"kv": "fp8"} if re.search("fp[48]", row["quant"], re.IGNORECASE) else {}
        told += ["its KV cache in fp8, as the published runs have it"] * ("kv" in precision)
    load = _load(row["batch_or_conc"] or "max" * row["metric"].endswith("_max"), told)
    return Question(
        row["id"], model, runtime, device, many, precision, load, prompt,
        steps, image, quantity, _number(row["value"]) * factor, tuple(told), page, _statistic(row["metric"]), dict(row),
    )  # fmt: skip


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise InputError(f"value {text!r} is no number") from None


def _whole(text: str) -> int | None:
    match = re.fullmatch(r"[~>]?\s*(\d[\d,]*)", text.strip())
    return int(match.group(1).replace(",", "")) if match else None


def _statistic(metric: str) -> str:
    match = re.search(r"mean|median|p\d\d", metric.lower())
    return match.group(0) if match else ""


def _load(text: str, told: list[str]) -> Load:
    """How many requests at once; nothing said is one."""
    lowered = text.lower()
    if (many := _whole(text)) is not None:
        return Load("closed" if many > 1 else "batch", many)
    if match := re.search(r"([\d.]+)\s*req/s", lowered):
        return Load("open", float(match.group(1)))
    if not text:
        told.append("requests one by one")
        return Load("batch", 1)
    if re.search(r"max|batch|offline|saturat", lowered):
        return Load("most")
    raise InputError(f"how requests come is not understood from {text!r}")


def _image(row: Mapping[str, str], told: list[str]) -> tuple[str | None, str | None]:
    """The size of an image as WIDTHxHEIGHT, or the name of a document that stands for it."""
    text = f"{row['image_mode']} {row['input_tok']}"
    if match := re.search(r"(\d{3,5})\s*[x*]\s*(\d{3,5})", text):
        return f"{match.group(1)}x{match.group(2)}", None
    assumed = names()["assumed"]
    if "1080p" in text:
        told.append(f"a page of 1080p is {assumed['p1080']}")
        return assumed["p1080"], None
    if re.search(r"image|page|omnidocbench", text, re.IGNORECASE) or row["category"] in ("OCR", "DSOCR"):
        told.append(f"a page as {assumed['page']}")
        return None, assumed["page"]
    return None, None


def _tokens(row: Mapping[str, str], pictured: bool, told: list[str]) -> tuple[int, int]:
    """Text tokens of the prompt and tokens of the answer."""
    assumed = names()["assumed"]
    shared = "sharegpt" in f"{row['input_tok']} {row['output_tok']}".lower()
    if shared:
        told.append("ShareGPT's lengths as their means, {} and {}".format(*assumed["sharegpt"]))
        return assumed["sharegpt"][0], assumed["sharegpt"][1]
    prompt, answer = _whole(row["input_tok"]), _whole(row["output_tok"])
    if pictured:  # tokens of the input are mostly the image's, which follow from its size
        told.append(f"{assumed['prompt']} tokens of text beside the image")
        prompt = assumed["prompt"]
    elif prompt is None:
        if row["input_tok"] and "short" not in row["input_tok"].lower():
            raise InputError(f"tokens of the prompt are not understood from {row['input_tok']!r}")
        told.append(f"a prompt of {assumed['short']} tokens")
        prompt = assumed["short"]
    if answer is None:
        match = re.search(r"\d+", row["output_tok"])
        answer = int(match.group(0)) if match else 0
    return prompt, answer
