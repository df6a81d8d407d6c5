"""A placed model as text: the answer first, then what each place holds, then what crosses."""

from __future__ import annotations

from collections.abc import Sequence

from modelmeter.device import Device
from modelmeter.report.tables import align, si
from modelmeter.splits import Crossing, Split


def split_text(found: Split, devices: Sequence[Device] = ()) -> str:
    """The answer and the tables; `devices` are those of the places, in order, or none."""
    work, at = found.work, dict(zip(found.parts, devices, strict=True)) if devices else {}
    image = work.image.describe() if work.image.views or not found.model.planner else "text alone, without an image"
    request = (
        f"{image}; {work.prompt_tokens:,} prompt tokens and an answer of {work.decode_steps:,}; batch {work.batch:,}"
    )
    bases = {name: part.basis(found.works[name]) for name, part in found.parts.items()}
    overhead = "overhead: as given, at each place" if found.overhead else "overhead: none; framework not counted"
    told = [*(f"{name}: {basis}" for name, basis in bases.items()), overhead, "GB = 1e9 bytes, GiB = 2**30"]
    crossing = _crossings(found, at) if found.crossings else "nothing crosses"
    return "\n".join([_answer(found, at), "", request, *told, "", _places(found, at), "", crossing, *found.model.notes])


def _answer(found: Split, at: dict[str, Device]) -> str:
    """What each place takes, whether it fits there, and how much crosses."""
    head = f"{found.model.name}, {found.placement.name}"
    needs = {place: float(found.fits(place).needed) for place in found.parts}
    rooms = [f"{place} {si(needs[place], 'B')}{_of(at.get(place))}" for place in found.parts]
    crossing, traffic = (float(sum(parts)) for parts in _totals(found))
    share = f"{si(crossing, 'B')} cross, {_percent(crossing, traffic)} % of the traffic"
    if not at:
        return f"{head}: {', '.join(rooms)}; {share}"
    short = [place for place in found.parts if needs[place] > at[place].memory_bytes]
    lacks = " and ".join(f"{place} lacks {si(needs[place] - at[place].memory_bytes, 'B')}" for place in short)
    return f"{head} {f'does not fit, {lacks}' if short else 'fits'}: {', '.join(rooms)}; {_batch(found, at)}; {share}"


def _of(device: Device | None) -> str:
    return f" of {si(device.memory_bytes, 'B')} ({device.title})" if device else ""


def _batch(found: Split, at: dict[str, Device]) -> str:
    """The largest batch that fits at every place."""
    most = [found.fits(place).batch_at_most(device.memory_bytes) for place, device in at.items()]
    least = min((size for size in most if size is not None), default=None)
    return f"batch at most {'any' if least is None else least or 'none'}"


def _totals(found: Split) -> tuple[list[float], list[float]]:
    """Bytes that cross, and the traffic of every stage."""
    crossing = [float(crossing.bytes) for crossing in found.crossings]
    return crossing, [float(found.traffic(stage.name)) for stage in found.model.stages]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2g}" if whole else "0"


def _places(found: Split, at: dict[str, Device]) -> str:
    """What is at each place: the cache at the end, the peak of any stage, what its largest stage takes."""
    heads = ["place", "weights", "KV cache", "peak activ.", "overhead", "at most", "GiB", "in", "kernels"]
    rows = [heads + ["memory", "fits"] * bool(at)]
    for place, holds in found.holds.items():
        fits = found.fits(place)
        kept, peak = fits.rooms[-1], max(float(room.activations) for room in fits.rooms)
        parts = (kept.weights, kept.kv_cache, peak, kept.overhead, fits.needed)
        cells = [*(si(float(part), "B") for part in parts), f"{float(fits.needed) / 2**30:.2f}", fits.largest.stage]
        memory = at[place].memory_bytes if at else 0
        own = [si(memory, "B"), "yes" if fits.needed <= memory else "no"] if at else []
        rows.append([place if place == holds else f"{place}: {holds}", *cells, f"{found.launches(place):,}", *own])
    return align(rows)


def _crossings(found: Split, at: dict[str, Device]) -> str:
    """What crosses, with the share of its stage's traffic and, where both ends have a link, the least time."""
    seconds = [_seconds(crossing, at) for crossing in found.crossings]
    rows = [["what crosses", "from", "to", "runs", "bytes a run", "bytes", "% of traffic"]]
    rows[0] += ["at least"] * any(seconds)
    for crossing, least in zip(found.crossings, seconds, strict=True):
        ends, many = (crossing.origin, crossing.to, f"{crossing.runs:,}"), float(crossing.bytes)
        each, share = many / float(crossing.runs), _percent(many, float(found.traffic(crossing.stage)))
        cells = [*ends, f"{each:,.0f}", si(many, "B"), share, *[least] * any(seconds)]
        rows.append([f"{crossing.stage}: {crossing.tensor}", *cells])
    return align(rows)


def _seconds(crossing: Crossing, at: dict[str, Device]) -> str:
    """The time at the bandwidth of the slower link of both ends, if both have one."""
    links = [at[end].link_bytes_per_s for end in (crossing.origin, crossing.to)] if at else []
    known = [link for link in links if link is not None]
    return f"{float(crossing.bytes) / min(known) * 1e6:.4g} us" if len(known) == 2 else ""
