"""Sweeps, reports and pages from their configuration: models, devices, profiles and published figures put together.

`sweep_tables` runs one sweep, `report_files` makes every file of a model's report; `report/files.py` writes them.
`page_text`, `fits_page`, `split_page`, `time_page`, `plan_page` and `profile_page` are what the commands of these names
print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from modelmeter import catalogue, config
from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.fits import Fits, request_of
from modelmeter.folders import comment_of, commented_yaml, config_dir
from modelmeter.models.model import BaseModel
from modelmeter.settings import (
    ALL,
    COUNTING,
    FITS,
    OUTPUT,
    PROFILE,
    REQUEST,
    SPLIT,
    TIME,
    TIMING,
    Setting,
    checked,
    options_of,
)
from modelmeter.splits import Split, split
from modelmeter.sweep.registry import SWEEPS
from modelmeter.sweep.table import Table
from modelmeter.workload import Workload


def page_text(model: BaseModel, work: Workload, depth: int = 1) -> str:
    """A page in five lines, then its table."""
    from modelmeter.report.tables import page_answer, page_table

    return f"{page_answer(model, work, catalogue.load_devices(catalogue.FEATURED))}\n\n{page_table(model, work, depth)}"


def fits_page(name: str, overrides: Sequence[str]) -> str:
    """Whether a request to a model fits devices. Raises InputError."""
    from modelmeter.report.fits import fits_text

    values, model, work = _asked("fits", name, overrides, FITS)
    devices = catalogue.load_devices(None if ALL in values["device"] else values["device"])
    given = {override.partition("=")[0] for override in overrides}
    source = "as given" if "overhead" in given else "; ".join(comment_of(commented_yaml("", "fits"), "overhead"))
    return fits_text(Fits(model, work, values["overhead"]), devices, catalogue.load_devices(), source)


def time_page(name: str, overrides: Sequence[str]) -> str:
    """What a request to a model takes on devices, and its timeline drawn where a folder is given.

    Devices that it does not fit are told of first. Raises InputError, also where it fits none.
    """
    from modelmeter.report.files import writable, write_all
    from modelmeter.report.fits import answer
    from modelmeter.report.times import times_text
    from modelmeter.times import Times

    values, model, work = _asked("time", name, overrides, TIME)
    host, folder = catalogue.load_host(values["host"]), values["out"]
    fits, devices = Fits(model, work, _overhead()), catalogue.load_devices(values["device"])
    short = fits.short(devices)
    every = catalogue.load_devices() if short else []
    lacking = [answer(fits, device, every) for device in short]
    if len(short) == len(devices):
        raise InputError("; ".join(lacking))
    found = [Times(model, work, device, host) for device in devices if device not in short]
    text = "\n".join([*lacking, times_text(found)])
    if folder is None:
        return text
    from modelmeter.report.timeline import timeline_figures

    writable(Path(folder))
    drawn = timeline_figures(found, ("svg", "png") if values["png"] else ("svg",))
    write_all(Path(folder), drawn)
    return f"{text}\n\n{', '.join(drawn)}\nin {folder}"


def profile_page(file: str, name: str, overrides: Sequence[str]) -> str:
    """A profiler's record of a model beside its prediction; writes files where `out` says so. Raises InputError."""
    from modelmeter.profiled.beside import laid
    from modelmeter.profiled.read import read
    from modelmeter.report import profiled
    from modelmeter.times import Times

    values, model, work = _asked("profile", name, overrides, PROFILE)
    recorded, [device] = read(file), catalogue.load_devices([values["device"]])
    times = Times(model, work, device, catalogue.load_host(values["host"]))
    found, told = laid(recorded, times, values["stage"])
    written = profiled.written(found, values["out"]) if values["out"] else ""
    return profiled.profile_text(found, times, recorded, told) + written


def plan_page(settings: Mapping[str, Any]) -> tuple[str, str, bool]:
    """What bears a load within targets: the page, its plans as CSV, and whether any does. Raises InputError."""
    from modelmeter.planned import planned
    from modelmeter.report.plans import plans_csv, plans_text

    found = planned(settings)
    rows = found.values["rows"]
    text = plans_text(found.search, found.found, found.devices, rows)
    return text, plans_csv(found.found.offers), bool(found.found.offers)


def split_page(name: str, overrides: Sequence[str]) -> str:
    """What each place of a placed model holds, and what crosses. Raises InputError."""
    from modelmeter.report.split import split_text

    values, model, work = _asked("split", name, overrides, SPLIT)
    found = split(model, work, values["placement"], overhead=values["overhead"], wire=values["wire"])
    return split_text(found, _devices_of(found, values["device"]))


def _asked(
    command: str, name: str, overrides: Sequence[str], own: Sequence[Setting]
) -> tuple[dict[str, Any], BaseModel, Workload]:
    """The checked settings of a command with keys of its `own`, the model and the request. Raises InputError."""
    if {"context", "prompt_tokens"} <= {override.partition("=")[0] for override in overrides}:
        raise InputError("give only one of context and prompt_tokens: a prompt is what image and answer leave of it")
    keys = (*own, *REQUEST, *COUNTING)
    settings = config.compose(command, [f"model={name}", *config.listed(overrides, "device")], keys)
    values = checked(keys, settings)
    options = options_of(values, values["runtime"], *REQUEST)
    model = config.build_model(settings)
    return values, model, request_of(model, values.get("context"), **options)


def _devices_of(found: Split, names: list[str] | None) -> list[Device]:
    """The device of each place: one for all of them, or as many as there are. Raises InputError."""
    if names is None:
        return []
    if len(names) not in (1, len(found.parts)):
        raise InputError(f"device must be one, or one for each of {', '.join(found.parts)}, not {len(names)}")
    known = dict(zip(dict.fromkeys(names), catalogue.load_devices(list(dict.fromkeys(names))), strict=True))
    return [known[name] for name in (names * len(found.parts))[: len(found.parts)]]


DEVICE_PAGES = {"fits": fits_page, "split": split_page, "time": time_page}
"""Pages of models on devices, by command."""


def settings_of(sweep: str) -> tuple[Setting, ...]:
    """The settings that a sweep takes: those that its module declares, and those of what is written."""
    own: tuple[Setting, ...] = SWEEPS[sweep].SETTINGS
    named = {setting.name for setting in own}
    return (*own, *(setting for setting in TIMING if setting.name not in named), *OUTPUT)


def sweep_tables(name: str, model: BaseModel, settings: Mapping[str, Any]) -> list[Table]:
    """The tables of a sweep; devices, profiles, further models and published figures are read from their files."""
    settings = dict(settings) | checked(settings_of(name), settings)
    comparable = [sweep for sweep, other in SWEEPS.items() if getattr(other, "COMPARABLE", False)]
    if settings["reference"] and name not in comparable:
        raise InputError(f"reference=true is not available for {name}; it is for {', '.join(comparable)}")
    further = (references().reference_counts,) if settings["reference"] else ()
    settings |= {key: catalogue.load(key, settings[key]) for key in catalogue.KINDS if key in settings}
    settings = _with_clock(settings)
    if "compared" in settings:
        settings["compared"] = [config.load_model(other) for other in settings["compared"]]
    settings["published"] = catalogue.load_published(model.name).get(name)
    return list(SWEEPS[name].run(model, settings, *further))


def _with_clock(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with devices and host as objects where seconds are predicted, else without these keys.

    All devices are those of `devices`, where a sweep has such a key and it names others than it does by itself.
    """
    names, changed = settings.pop("device"), settings.pop("host")
    if names is None:
        return settings
    named = settings.get("devices")
    if ALL in names and named and [device.name for device in named] != catalogue.FEATURED:
        devices = named
    else:
        devices = catalogue.load_devices(None if ALL in names else names)
    return settings | {"device": devices, "host": catalogue.load_host(changed), "overhead": _overhead()}


def _overhead() -> int:
    """Bytes that a framework holds besides, where nobody says how many."""
    return int(config.read_yaml(config_dir() / "fits.yaml")["overhead"])


def references() -> ModuleType:
    """The registry of the models' reference modules. Raises InputError where torch is not installed."""
    try:
        from modelmeter.validate import registry
    except ModuleNotFoundError as error:
        how = "in a checkout, pip install -c constraints.txt '.[validation]'"
        raise InputError(f"{error.name} is not installed: {how}") from None
    return registry


def report_files(name: str, command: str, *, validation: bool = True, png: bool = False) -> dict[str, str | bytes]:
    """Every file of a report by path: pages in each language, figures, the reconciliation. Its YAML names the `model`,
    if that is not called as the report is, and the `pages`, if not all.

    `validation` adds the comparison with the reference modules (needs the extra `validation`).
    """
    from modelmeter.report.diagram import page_pictures
    from modelmeter.report.document import Report
    from modelmeter.report.figures import figures

    formats = ("svg", "png") if png else ("svg",)
    settings = config.read_yaml(config_dir() / "report" / f"{name}.yaml")
    of = settings.get("model", name)
    model = config.load_model(of)
    proofs = _proofs(of) if validation and settings.get("compared", True) else None
    ran = {sweep: _run(sweep, model, settings["page"]) for sweep in settings["sweeps"]}
    first = {table.name: sweep for sweep in reversed(ran) for table in ran[sweep]}
    once = {sweep: [table for table in found if first[table.name] == sweep] for sweep, found in ran.items()}
    work = model.workload(**settings["page"])
    report = Report(model, work, command, settings, once, catalogue.dims_with_sources(of), *(proofs or (None, ())))
    contents: dict[str, str | bytes] = {f"{name}/{file}": text for file, text in report.pages().items()}
    drawn = page_pictures(model, work, formats)
    for table in {table.name: table for table in chain(*ran.values())}.values():
        drawn |= figures(table, formats)
    contents |= {f"{name}/figures/{file}": content for file, content in drawn.items()}
    if settings.get("reconciles"):
        contents |= _reconciled(model, settings["reconciles"], command, formats)
    return contents


def _run(sweep: str, model: BaseModel, page: Mapping[str, Any], *overrides: str) -> list[Table]:
    """The tables of a sweep for the report's page, which marks its grid where the sweep has grids."""
    counted = [f"sweep@_global_={sweep}", f"model={model.name}", "device=null"]  # reports hold no predicted times
    settings = config.compose("run_sweep", [*counted, *overrides])
    return sweep_tables(sweep, model, settings | {key: value for key, value in page.items() if key in settings})


def _proofs(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A model beside its reference modules, at full size and for all sizes."""
    try:
        compared = list(references().comparison_rows(name))
        from modelmeter.validate import symbolic

        return compared, symbolic.rows(name)
    except InputError as error:
        raise InputError(f"{error}, or leave the comparison out with validation=false") from None


def _reconciled(model: BaseModel, published: str, command: str, formats: tuple[str, ...]) -> dict[str, str | bytes]:
    """The reconciliation of a model with its published tables, beside the model's own folder."""
    from modelmeter.report.figures import figures
    from modelmeter.report.reconciliation import SWEEPS as RECONCILED
    from modelmeter.report.reconciliation import Reconciliation

    names, shown = (*RECONCILED, "ttft", "tpot", "per_layer"), config.load_model(published)
    printed = {table: catalogue.published_table(model.name, table) for table in names}
    ours, real = (
        {table.name: table for sweep in RECONCILED for table in _run(sweep, one, {}, "runtime=flash")}
        for one in (shown, model)
    )
    found = Reconciliation(model, shown, command, ours, real, printed)
    drawn = figures(found.error_table, formats)
    return {"reconciliation.md": found.page()} | {f"figures/{file}": content for file, content in drawn.items()}


def kernel_score(folder: str, told: Callable[[str], None]) -> str:
    """The laws of time against measured kernels, on shapes and devices left out. Raises InputError."""
    from modelmeter.seconds import measured, page, score

    left: list[str] = []
    groups = measured.read(folder, {device.name: device for device in catalogue.load_devices()}, left)
    never = list(score.unseen(groups))
    found = [row for _, rows in score.scores(groups, told) for row in rows]
    return page.text_of(found, score.of_nvidia(groups), never, left)


def request_score(*path: str) -> str:
    """Predicted times against a file of measurements, or the published ones that are shipped. Raises InputError."""
    from modelmeter.measured.score import score_text, scored

    return score_text(scored(*path))
