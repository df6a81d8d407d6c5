"""Settings of `modelmeter plan`: its keys beside those of a request and of counting (settings.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.settings import (
    COUNTING,
    FITS,
    FOLDER,
    HOST,
    REQUEST,
    SIZES,
    Kind,
    Setting,
    joined,
    of_type,
    one_of,
    whole,
)


def _number(words: tuple[str, ...] = ()) -> Kind:
    """A number above 0, or one of some words."""

    def check(key: str, value: Any) -> Any:
        if value in words:
            return value
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= MOST:
            raise InputError(f"{key} must be {' or '.join(('a number above 0', *words))}, not {value!r}")
        return value

    return Kind(check)


def _mapping(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{key} must be names with values, such as {EXAMPLES[key]}, not {value!r}")
    return value


def _prices(key: str, value: Any) -> Any:
    return {name: _number().check(f"{key}.{name}", price) for name, price in _mapping(key, value).items()}


def _shares(key: str, value: Any) -> dict[str, float]:
    """Names with their shares: one, a list of equal ones, or a mapping."""
    given = value if isinstance(value, Mapping) else dict.fromkeys(value if isinstance(value, list) else [value], 1.0)
    if not given:
        raise InputError(f"{key} must be one or more names, not {value!r}")
    return {str(name): float(_number().check(f"{key}.{name}", share)) for name, share in given.items()}


MOST = 1e15
EXAMPLES = {"price": "{a100_40gb: 1.2}", "mix": "{output: {mean: 900, p99: 3000}}"}
ANY = Kind(lambda key, value: value, lists=True)
"""What is checked where it is used."""
_FORM = Kind(lambda key, value: str(value), lambda: "forms", str)
PLAN = (
    Setting("devices", FITS[0].kind, FITS[0].help, several=True),
    Setting("pages_per_day", _number(), "pages that must be borne in 24 hours; null: as load says", nullable=True),
    Setting("load", _number(("most", "trace")), "or pages a second; trace: the trace's own; most: the most within the "
            "targets"),
    Setting("ttft", _number(), "seconds to the first token at most", nullable=True),
    Setting("tpot", _number(), "seconds a further token at most", nullable=True),
    Setting("level", one_of(lambda: ("mean", "p50", "p90", "p99")), "of the requests, by which targets are met"),
    Setting("forms", _FORM, "of a replica: tp2, tp2+ep2, dp4+ep4, pp2 (tensor, expert, data, pipeline)", several=True),
    Setting("apart", one_of(lambda: ("together", "decode", "vision")),
            "together: one engine; decode: decode apart; vision: vision, prefill and decode apart", several=True),
    Setting("max_num_seqs", whole(), "requests of a replica at once", several=True),
    Setting("max_batched_tokens", whole(), "tokens of a step", several=True),
    Setting("host_threads", whole(), "cores that prepare the images of a replica"),
    Setting("count", whole(), "devices that there are; null: as many as it takes, or one replica", nullable=True),
    Setting("price", Kind(_prices, lists=True), f"money for an hour of a device, such as {EXAMPLES['price']}",
            nullable=True),
    Setting("profiles", Kind(_shares, lists=True), f"of {', '.join(config_names('profile'))} or YAML files, with "
            "shares {receipt: 2, slides: 1}; null: a4_200dpi, where no image is given", nullable=True),
    Setting("mix", Kind(_mapping, lists=True), "images, prompt and output of the requests"),
    Setting("mix.images", ANY, "sizes with shares {1654x2339: 0.7, 640x1600: 0.3}; null: as profiles or an image say"),
    *(Setting(f"mix.{name}", ANY, "a number, {mean: 900, p99: 3000}, {low: 10, high: 20} or {values: [...], shares: "
              "[...]}; null: the pages' own") for name in ("prompt", "output")),
    Setting("trace", of_type(str, "the path of a CSV file"), "a CSV of requests in the place of a mix", nullable=True),
    Setting("rows", whole(), "plans that are shown"),
    Setting("out", FOLDER, "folder of plan.txt and plans.csv; null: none is written", nullable=True),
    HOST,
    *(replace(setting, nullable=True, help=f"{setting.help}; null: as the profile has it") for setting in SIZES[1:]),
)  # fmt: skip
"""What a plan takes, beside what a request takes."""
KEYS = joined(*REQUEST, *COUNTING, *PLAN)
"""All keys of the command."""
