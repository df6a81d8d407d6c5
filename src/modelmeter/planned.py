"""From the settings of `modelmeter plan` to what is asked of a model, a search, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from modelmeter import catalogue, config
from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.models.model import BaseModel
from modelmeter.plan_settings import KEYS
from modelmeter.plans.asked import Asked, Page
from modelmeter.plans.search import Found, Search
from modelmeter.serving.targets import Targets
from modelmeter.settings import ALL, checked, options_of
from modelmeter.workload import Workload, parse_pair

USUAL = "a4_200dpi"
"""The profile whose lengths, and without an image whose page, are taken where nothing else is said."""
IMAGE = ("image", "image_size", "grid")


class Planned(NamedTuple):
    """A search that ran: what was found for these devices, and by which settings."""

    search: Search
    found: Found
    devices: list[Device]
    values: dict[str, Any]


def planned(settings: Mapping[str, Any]) -> Planned:
    """Run the search that settings (configs/plan.yaml) ask for. Raises InputError for what cannot be planned."""
    values = checked(KEYS, settings)
    model = config.build_model(settings)
    if values["batch"] != 1:
        raise InputError("a plan batches requests itself: give max_num_seqs, not batch")
    if any(int(values["parallel"][key]) > 1 for key in values["parallel"]):
        raise InputError("a plan tries parallel forms itself: give forms=[tp2], not parallel")
    devices = catalogue.load_devices(None if ALL in values["devices"] else values["devices"])
    asked = asked_of(model, values)
    search = Search(
        asked, catalogue.load_host(values["host"]), Targets(values["ttft"], values["tpot"], level=values["level"]),
        _rate(asked, values), values["forms"], values["apart"], values["max_num_seqs"], values["max_batched_tokens"],
        values["host_threads"], _prices(values["price"], devices), values["count"],
    )  # fmt: skip
    if search.rate is None and "together" in search.apart:
        search = replace(search, apart=("together",))  # stations apart are counted for a load
    if not asked.requests.image_tokens.any() and len(search.apart) > 1:
        search = replace(search, apart=[way for way in search.apart if way != "vision"])  # there is none
    found = search.run(devices)
    if not found.offers and not found.missed:
        raise InputError(f"nothing can be planned: {'; '.join(found.reasons)}")
    return Planned(search, found, devices, values)


def _prices(given: Mapping[str, float] | None, devices: list[Device]) -> Mapping[str, float] | None:
    """Prices by device. Raises InputError for one that is not planned with, or lacks."""
    if given is None:
        return None
    names = [device.name for device in devices]
    for name in (name for name in given if name not in names):
        raise InputError(f"price of {name!r}, which is none of the devices {', '.join(names)}")
    for name in (name for name in names if name not in given):
        raise InputError(f"price lacks {name}: give the money for an hour of each of the devices, or none at all")
    return given


def _rate(asked: Asked, values: Mapping[str, Any]) -> float | None:
    """Requests a second; None: the most."""
    load, pages = values["load"], float(asked.requests.pages.mean())
    if pages <= 0:
        raise InputError(f"trace {values['trace']!r} has no pages: its column pages is 0 in all rows")
    if values["pages_per_day"] is not None:
        if load != "most":
            raise InputError(f"give only one of pages_per_day and load, not {values['pages_per_day']:g} and {load}")
        return float(values["pages_per_day"]) / 86400 / pages
    if load == "trace":
        if values["trace"] is None:
            raise InputError("load=trace needs trace=FILE, a CSV of requests; or give pages_per_day, or load=2")
        return asked.requests.rate
    return None if load == "most" else float(load) / pages


def asked_of(model: BaseModel, values: Mapping[str, Any]) -> Asked:
    """What settings ask of a model: a trace, a mix of image sizes or profiles, one image, or text."""
    mix = {"images": None, "prompt": None, "output": None} | dict(values["mix"])
    given = [key for key in IMAGE if values[key] is not None]
    chosen = given + [key for key in ("profiles", "trace") if values[key] is not None]
    chosen += ["mix.images"] if mix["images"] else []
    if len(chosen) > 1:
        raise InputError(f"give only one of {', '.join((*IMAGE, 'profiles', 'mix.images', 'trace'))}, not {chosen}")
    if values["trace"] is not None and (mix["prompt"] or mix["output"]):
        raise InputError("a trace tells its own prompts and answers: leave mix.prompt and mix.output out")
    lengths = {key: values[key] for key in ("prompt_tokens", "decode_steps") if values[key] is not None}
    options = options_of(values, values["runtime"])
    if values["trace"] is not None:
        page = _pages(model, values, {}, lengths, options)[0].work if model.planner else model.text(1, **options)
        sized = lambda width, height: _sized(model, (width, height), values["mode"], lengths, options)
        return Asked.of_trace(model, values["trace"], sized, page)
    pages = _pages(model, values, mix["images"] or {}, lengths, options)
    told = ", ".join(f"{page.share:g} x {page.told}" if len(pages) > 1 else page.told for page in pages)
    told += "".join(f"; {key} {mix[key]}" for key in ("prompt", "output") if mix[key])
    return Asked.of_pages(model, pages, mix["prompt"], mix["output"], told)


def _pages(model: BaseModel, values: Mapping[str, Any], images: Mapping[str, float], lengths: Mapping[str, Any],
           options: Mapping[str, Any]) -> list[Page]:  # fmt: skip
    """The pages of a mix."""
    if model.planner is None:
        if values["profiles"] or images or any(values[key] is not None for key in IMAGE):
            raise InputError(f"{model.name} takes no image: give prompt_tokens and decode_steps, or mix")
        prompt, steps = (_needed(values, key) for key in ("prompt_tokens", "decode_steps"))
        return [_page(model.text(prompt, decode_steps=steps, **options), 1.0)]
    if images:
        sizes = {parse_pair("mix.images", size, "WIDTHxHEIGHT"): share for size, share in images.items()}
        return [_page(_sized(model, size, values["mode"], lengths, options), share) for size, share in sizes.items()]
    own = {key: values[key] for key in IMAGE if values[key] is not None}
    if own:
        return [_page(model.workload(**own, mode=values["mode"], **{**_usual(), **lengths}, **options), 1.0)]
    profiles = values["profiles"] or {USUAL: 1.0}
    found = []
    for profile, share in zip(catalogue.load_profiles(list(profiles)), profiles.values(), strict=True):
        of = profile if values["mode"] is None else replace(profile, mode=values["mode"])
        work = replace(of.workload(model, **options), **lengths)
        found.append(_page(work, share * profile.pages, f"{profile.title} ({profile.image_size}): "))
    return found


def _page(work: Workload, share: float, title: str = "") -> Page:
    image = work.image.describe() if work.image.views else "text alone"
    lengths = f"{work.prompt_tokens:,} prompt tokens, an answer of {work.decode_steps:,}"
    return Page(work, share, f"{title}{image}, {lengths}")


def _sized(model: BaseModel, size: tuple[int, int], mode: Any, lengths: Mapping[str, Any],
           options: Mapping[str, Any]) -> Workload:  # fmt: skip
    return model.workload(image_size=size, mode=mode, **{**_usual(), **lengths}, **options)


def _usual() -> dict[str, int]:
    """The lengths of the usual page."""
    [profile] = catalogue.load_profiles([USUAL])
    return {"prompt_tokens": profile.prompt_tokens, "decode_steps": profile.output_tokens}


def _needed(values: Mapping[str, Any], key: str) -> int:
    """A length of text. Raises InputError where neither it nor its distribution is given."""
    name = {"prompt_tokens": "prompt", "decode_steps": "output"}[key]
    if values[key] is None and not values["mix"].get(name):
        raise InputError(f"requests without an image need {key}, or mix.{name}={{mean: 500, p99: 3000}}")
    return int(values[key] or 1)
