"""Texts of measurements: loads, lengths, images and devices as rows write them, understood or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from modelmeter.errors import InputError

NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
OPEN = (
    rf"{NUMBER}\s*(?:req(?:uests?)?\s*/\s*s|rps|qps|req_s)\b"
    rf"|\b(?:qps|rps|poisson|(?:request[ _-]?)?rate)\s*[=:]?\s*{NUMBER}"
)
CLOSED = (
    r"\b(?:(?:max[ _-]?)?conc(?:urrency|urrent)?|c|users?|clients?|streams?|in[ -]flight|parallel|np|closed loop"
    rf"|(?:max_num_)?seqs)\s*[=:]?\s*{NUMBER}"
    rf"|{NUMBER}\s*(?:conc(?:urrent|urrency)?|users?|clients?|streams?|in[ -]flight|threads|parallel|slots|seqs|workers"
    r"|prompts|req(?:uest)?s?(?: in[ -]flight| at once)?)\b"
)
BATCH = rf"\b(?:static[ _-]?)?(?:bs|b|static|batch(?:[ _-]?size)?)\s*[=:]?\s*{NUMBER}\b|{NUMBER}\s*\(?static\b"
ONE = r"^(?:single(?:[ -]\w+)?|sequential(?:ly)?|one(?: by one)?|none|n/?a|-|1x)$"
MOST = r"\bmax\b|max[ _-]?load|full load|^batch$|offline|saturat|peak|\binf(?:inite)?\b|burst|^(?:max )?throughput$"
POWERS = frozenset({1, 2, 4, 8, 16, 32, 64, 128, 256})
"""Thousands that are powers of two: "8K" tokens are 8,192; others are a thousand each."""
SPLIT = (
    r"\b(\d{1,3})\s*[x×*]\s*(?=[a-z])", r"(?:\s[x*]|\s?×|(?<=\d)x)\s*(\d{1,2})(?!\S)", r"\btp\s*[=-]?\s*(\d{1,2})\b",
    r"\b(\d{1,2})[- ](?:gpus|cards)\b",
)  # fmt: skip
"""How rows tell a number of devices: "8xH100", "H100 x8", "TP8", "8 GPUs", "dual RTX 3090"."""
DEPTH = r"(?:@\s*d?|\bdepth\s*[=:]?\s*|(?<![a-z])d(?=\d{3}))(\d[\d,]*)\s*(k?)\b"
"""Tokens that stand in the cache before, as llama-bench tells them: "pp512 @ d4096"."""
A4 = (8.27, 11.69)
"""Inches."""
UNTOLD = (
    (
        r"\b(?:(\d+) (?:images|imgs)|(\d{1,2})[- ]pages?\b(?= ?(?:pdf|doc))|(\d+) ?[x×] (?=\d+ ?[x×] ?\d))",
        "several images a request",
    ),
    (r"\bvideo|\bframes\b", "videos"),
    (r"x ?\d+ tiles\b", "tiles of a model's own"),
    (
        r"\b(?:element|table|formula|line|text[- ]line|word|cropped)\b[- ]?(?:crops?|images?|lines?)?$",
        "parts of a page",
    ),
)
"""What images are not told of; where a pattern has a number, of more than one."""
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
    if (many := whole(re.sub(r"\((?:offline|batch|server|online)\)", "", lowered))) is not None:
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
    if not lowered or re.fullmatch(r"-|n/?a|none|default|varies|(?:(?:up )?to |until )?eos|\d+ image", lowered):
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
        r"[~≈><]|\b(?:avg|average|mean|about|random|isl|osl|in|out|input|output|pp|tg|max|up to|ctx|context|fixed)\b"
        r"|\bmax_(?:new_)?|\b(?:pp|tg)(?=\d)"
    )
    bare = re.sub(rf"{known}|[=:()]|/page|{DEPTH}", " ", lowered).strip(" _s+,")
    if match := re.fullmatch(rf"{NUMBER}\s*(k?)", bare):
        return Length(_tokens(match.group(1), match.group(2)))
    raise InputError(f"tokens of the {what} are not understood from {text!r}")


def _tokens(text: str, thousands: str) -> int:
    many = number(text)
    return round(many * (1024 if many in POWERS else 1000) if thousands else many)


def parted(prompt: str, answer: str) -> tuple[str, str]:
    """Prompt and answer of "128/2048", where both stand in the column of the prompt."""
    match = re.fullmatch(r"(?:random)?\s*([\d.,k]+)\s*(?:/|,\s|:|->|→)\s*([\d.,k]+)\s*", prompt, re.IGNORECASE)
    return (match.group(1), match.group(2)) if match and not answer.strip() else (prompt, answer)


def size_of(text: str) -> str | None:
    """WIDTHxHEIGHT of an image, or None; what tells one side or pixels alone is upright as A4. Raises InputError."""
    lowered = text.lower().replace("×", "x")
    for pattern, what in UNTOLD:
        match = re.search(pattern, lowered)
        if match and all(1 < int(many) < 100 for many in match.groups() if many):
            raise InputError(f"{what} ({match.group(0).strip()}) are not told")
    if match := re.search(r"(\d{2,5})\s*[x*]\s*(\d{2,5})", lowered):
        return f"{match.group(1)}x{match.group(2)}"
    if match := re.search(r"\b(\d{2,3})\s*dpi", lowered):
        return _upright(int(match.group(1)))
    if match := re.search(r"\b(720p|1080p|1440p|4k)\b", lowered):
        return "x".join(map(str, NAMED[match.group(1)]))
    if match := re.search(
        r"(?:long\w* (?:edge|side|dim\w*)\D{0,6}(\d{3,4})|(\d{3,4})\D{0,4} ?(?:on (?:the )?)?long\w*)", lowered
    ):
        return _upright(int(match.group(1) or match.group(2)) / A4[1])
    if match := re.search(rf"{NUMBER}\s*(?:mp|megapixels?)\b", lowered):
        return _upright((number(match.group(1)) * 1e6 / A4[0] / A4[1]) ** 0.5)
    if match := re.search(r"\b(\d{3,4})\s*(?:px\b|²|\^2|sq\w*\b)", lowered):
        return f"{match.group(1)}x{match.group(1)}"
    return None


def _upright(dots: float) -> str:
    """A4 at so many dots an inch."""
    return "x".join(str(round(side * dots)) for side in A4)


def depth_of(*texts: str) -> int:
    """Tokens that stand in the cache before those that are measured; 0 where none are told."""
    match = next((found for text in texts if (found := re.search(DEPTH, text.lower()))), None)
    return _tokens(match.group(1), match.group(2)) if match else 0


def devices_of(row: Mapping[str, Any]) -> tuple[int, int]:
    """How many devices a model is split over, and how many copies of it there are. Raises InputError for a conflict."""
    texts = " | ".join(str(row.get(key, "")) for key in ("engine", "hardware", "quant")).lower()
    texts = re.sub(r"\bdual ", "2x ", texts)
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
