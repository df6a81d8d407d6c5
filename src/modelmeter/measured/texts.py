"""Texts of measurements: loads, lengths, images and devices as rows write them, understood or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from modelmeter.errors import InputError

NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
OPEN = rf"{NUMBER}\s*(?:req(?:uests?)?\s*/\s*s|rps|qps|req_s)\b|\b(?:qps|rps|(?:request[ _-]?)?rate)\s*[=:]?\s*{NUMBER}"
CLOSED = (
    rf"\b(?:(?:max[ _-]?)?conc(?:urrency|urrent)?|c|users?|clients?|streams?|in[ -]flight)\s*[=:]?\s*{NUMBER}"
    rf"|{NUMBER}\s*(?:concurrent|users?|clients?|streams?|in[ -]flight|threads)\b"
)
BATCH = rf"\b(?:static[ _-]?)?(?:bs|b|batch(?:[ _-]?size)?)\s*[=:]?\s*{NUMBER}\b"
ONE = r"^(?:single(?:[ -]\w+)?|sequential(?:ly)?|one(?: by one)?|none|n/?a|-)$"
MOST = r"\bmax\b|max[ _-]?load|^batch$|offline|saturat|peak|\binf(?:inite)?\b|burst"
POWERS = frozenset({1, 2, 4, 8, 16, 32, 64, 128, 256})
"""Thousands that are powers of two: "8K" tokens are 8,192; others are a thousand each."""
SPLIT = (r"\b(\d{1,3})\s*[x×]\s*(?=[a-z])", r"(?<=\w)\s*[x×]\s*(\d{1,2})\b", r"\btp\s*[=-]?\s*(\d{1,2})\b")
"""How rows tell a number of devices: "8xH100", "H100 x8", "TP8"."""
A4 = (8.27, 11.69)
"""Inches."""
NAMED = {"720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440), "4k": (3840, 2160)}


class Load(NamedTuple):
    """How requests come: `batch` of so many at once, `closed` with so many in flight, `most`, or `open` at a rate."""

    kind: str
    size: float = 1


class Length(NamedTuple):
    """Tokens: the mean, and how far they are spread about it, evenly; `spread` is 0 for one that is fixed."""

    mean: int
    spread: float = 0.0


def number(text: str) -> float:
    """A number with commas. Raises InputError for none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise InputError(f"value {text!r} is no number") from None


def whole(text: str) -> int | None:
    """A whole number that is the text ("~1,024", ">100"), or None."""
    match = re.fullmatch(r"[~>≈]?\s*(\d[\d,]*)", text.strip())
    return int(match.group(1).replace(",", "")) if match else None


def load_of(text: str, told: list[str]) -> Load:
    """How many requests at once; nothing said is one. Raises InputError for what is not understood."""
    lowered = text.lower().strip()
    if (many := whole(text)) is not None:
        return _closed(many)
    if not text or re.search(ONE, lowered):
        told.append("requests one by one")
        return Load("batch", 1)
    if match := re.search(OPEN, lowered):
        return Load("open", _first(match))
    if match := re.search(BATCH, lowered):
        return Load("batch", _first(match))
    if match := re.search(CLOSED, lowered):
        return _closed(_first(match))
    if re.search(MOST, lowered):
        return Load("most")
    raise InputError(f"how requests come is not understood from {text!r}")


def _closed(many: float) -> Load:
    if many < 1:
        raise InputError(f"how requests come is not understood from {many:g}")
    return Load("closed" if many > 1 else "batch", many)


def _first(match: re.Match[str]) -> float:
    return number(next(group for group in match.groups() if group))


def length_of(text: str, what: str, sharegpt: int) -> Length | None:
    """Tokens of a text; None for none told. Raises InputError for what is not understood."""
    lowered = text.lower().replace("tokens", "").replace("tok", "").strip()
    if not lowered or re.fullmatch(r"-|n/?a|none|default|varies|eos|\d+ image", lowered):
        return None
    if "sharegpt" in lowered:
        return Length(sharegpt)
    if "short" in lowered:
        return None
    found = re.search(rf"{NUMBER}\s*(k?)\s*(?:-|–|to|\.\.)\s*{NUMBER}\s*(k?)", lowered)
    if found:
        low, high = _tokens(found.group(1), found.group(2) or found.group(4)), _tokens(found.group(3), found.group(4))
        if low <= high:
            return Length(round((low + high) / 2), (high - low) / 2)
    known = (
        r"[~≈><]|\b(?:avg|average|mean|about|random|isl|osl|in|out|input|output|pp|tg|max|up to)\b|\b(?:pp|tg)(?=\d)"
    )
    bare = re.sub(rf"{known}|[=:()]|/page", " ", lowered).strip()
    if match := re.fullmatch(rf"{NUMBER}\s*(k?)", bare):
        return Length(_tokens(match.group(1), match.group(2)))
    raise InputError(f"tokens of the {what} are not understood from {text!r}")


def _tokens(text: str, thousands: str) -> int:
    many = number(text)
    return round(many * (1024 if many in POWERS else 1000) if thousands else many)


def parted(prompt: str, answer: str) -> tuple[str, str]:
    """Prompt and answer of "128/2048", where both stand in the column of the prompt."""
    match = re.fullmatch(r"\s*([\d.,k]+)\s*(?:/|,\s|:|->|→)\s*([\d.,k]+)\s*", prompt, re.IGNORECASE)
    return (match.group(1), match.group(2)) if match and not answer.strip() else (prompt, answer)


def size_of(text: str) -> str | None:
    """WIDTHxHEIGHT of an image, or None. Raises InputError for several images."""
    lowered = text.lower().replace("×", "x")
    if (match := re.search(r"\b(\d+)\s*(?:images|pages|imgs)\b", lowered)) and 1 < int(match.group(1)) < 100:
        raise InputError(f"several images a request ({match.group(0)}) are not told")
    if match := re.search(r"(\d{2,5})\s*[x*]\s*(\d{2,5})", lowered):
        return f"{match.group(1)}x{match.group(2)}"
    if match := re.search(r"a4\D*?(\d{2,3})\s*dpi", lowered):
        return "x".join(str(round(side * int(match.group(1)))) for side in A4)
    if match := re.search(r"\b(720p|1080p|1440p|4k)\b", lowered):
        return "x".join(map(str, NAMED[match.group(1)]))
    if match := re.search(r"\b(\d{3,4})\s*px\b", lowered):
        return f"{match.group(1)}x{match.group(1)}"
    return None


def devices_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """How many devices a model is split over, and how many copies of it there are. Raises InputError for a conflict."""
    texts = " ".join(str(row.get(key, "")) for key in ("engine", "hardware", "quant")).lower()
    counts = [int(found) for pattern in SPLIT for found in re.findall(pattern, texts) if int(found) > 1]
    given = whole(str(row.get("n_gpu", "")))
    told = set(counts) | ({given} if given and (given > 1 or counts) else set())
    if len(told) > 1:
        raise InputError(f"the number of devices is told twice: {', '.join(map(str, sorted(told)))}")
    many = told.pop() if told else 1
    copies = re.search(r"\bdp\s*[=-]?\s*(\d{1,2})\b", texts)
    replicas = int(copies.group(1)) if copies else 1
    if many % replicas:
        raise InputError(f"{many} devices are not {replicas} copies")
    return many // replicas, replicas
