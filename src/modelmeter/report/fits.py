"""Whether a request fits, as text: the answer first, then what takes the room by stage, then every device."""

from __future__ import annotations

from collections.abc import Sequence

from modelmeter.device import Device
from modelmeter.fits import Fits
from modelmeter.report.tables import align, si, stage_title


def fits_text(fits: Fits, devices: Sequence[Device], catalogue: Sequence[Device], source: str) -> str:
    """The answer for these devices, of which those of the `catalogue` may be a way out, and the tables.

    `source` says where the overhead comes from.
    """
    work, one = fits.work, devices[0]
    lines = [answer(fits, one, catalogue)] if len(devices) == 1 else _answers(fits, devices, catalogue)
    beyond = ", beyond the model's {:,} positions" if fits.model.is_beyond(fits.context) else ""
    image = work.image.describe() if work.image.views or not fits.model.planner else "text alone, without an image"
    request = (
        f"{image}; {work.prompt_tokens:,} prompt tokens and an answer of {work.decode_steps:,}: a context of "
        f"{fits.context:,} tokens{beyond.format(fits.model.positions)}; batch {work.batch:,}"
    )
    held = f"overhead: {source}" if fits.overhead else "overhead: none; framework, allocator, fragmentation not counted"
    memory = "memory as datasheets print it; GB = 1e9 bytes, GiB = 2**30"
    tables = [_stages(fits)] + ([_devices(fits, devices)] if len(devices) > 1 else [])
    head = [*lines, "", request, fits.model.basis(work), held, memory]
    return "\n".join([*head, *(part for table in tables for part in ("", table)), *fits.model.notes])


def answer(fits: Fits, device: Device, catalogue: Sequence[Device]) -> str:
    """Whether it fits a device: with what at most, or what would help."""
    name, at = fits.model.name, f"at batch {fits.work.batch:,} and a context of {fits.context:,} tokens"
    memory = si(device.memory_bytes, "B")
    if fits.needed <= device.memory_bytes:
        room = f"{_of(fits.needed, device)} {at}"
        return f"{name} fits {device.title}: {room}; batch at most {_batch(fits, device)}; {_context(fits, device)}"
    lacks = f"it lacks {si(fits.needed - device.memory_bytes, 'B')} of the {si(fits.needed, 'B')} needed {at}"
    ways = _ways(fits, device, catalogue)
    how = f"what would fix it: {', or '.join(ways)}" if ways else "no change that is tried here would fix it"
    return f"{name} does not fit {device.title} ({memory}): {lacks}; {how}"


def _answers(fits: Fits, devices: Sequence[Device], catalogue: Sequence[Device]) -> list[str]:
    """On how many devices it fits, and a sentence for each that it does not."""
    short = fits.short(devices)
    smallest = min((d for d in devices if d not in short), key=lambda d: d.memory_bytes, default=None)
    many = f"{fits.model.name} fits {len(devices) - len(short)} of {len(devices)} devices"
    first = f", the smallest {smallest.title}: {answer(fits, smallest, ()).partition(': ')[2]}" if smallest else ""
    return [many + first, *(answer(fits, device, catalogue) for device in short)]


def _ways(fits: Fits, device: Device, catalogue: Sequence[Device]) -> list[str]:
    """What would make it fit a device, as a user types it."""
    memory = device.memory_bytes
    batch, context = fits.batch_at_most(memory), fits.context_at_most(memory)
    found = ([f"batch={batch}"] if batch else []) + ([f"context={context}"] if context else []) + fits.changes(memory)
    larger = [other for other in catalogue if other.memory_bytes >= fits.needed]
    least = min((other.memory_bytes for other in larger), default=0)
    return found + [f"device={other.name}" for other in larger if other.memory_bytes == least]


def _batch(fits: Fits, device: Device) -> str:
    return _size(fits.batch_at_most(device.memory_bytes))


def _context(fits: Fits, device: Device) -> str:
    """The longest context; one beyond the model's positions says so."""
    context, positions = fits.context_at_most(device.memory_bytes), fits.model.positions
    beyond = context is None or fits.model.is_beyond(context)
    told = f", beyond the model's {positions:,} positions" if positions is not None and beyond else ""
    return f"context at most {_size(context)}{told}"


def _size(size: int | None) -> str:
    return "any" if size is None else f"{size:,}" if size else "none"


def _of(needed: float, device: Device) -> str:
    return f"{si(needed, 'B')} of {si(device.memory_bytes, 'B')}"


def _stages(fits: Fits) -> str:
    """What takes the room while each stage runs; the largest is marked."""
    rows = [["stage", "weights", "KV cache", "peak activ.", "overhead", "sum", "GiB", ""]]
    for room in fits.rooms:
        parts = (room.weights, room.kv_cache, room.activations, room.overhead, room.total)
        mark = "most" if room is fits.largest else ""
        cells = [*(si(float(part), "B") for part in parts), f"{float(room.total) / 2**30:.2f}", mark]
        rows.append([stage_title(fits.model, room.stage, fits.work), *cells])
    return align(rows)


def _devices(fits: Fits, devices: Sequence[Device]) -> str:
    """Each device with what is left of it, and the most that it holds."""
    rows = [["device", "memory", "GiB", "needed", "%", "left", "fits", "batch at most", "context at most"]]
    for device in devices:
        memory = device.memory_bytes
        share, left = f"{100 * float(fits.needed) / memory:.1f}", float(memory - fits.needed)
        room = [si(memory, "B"), f"{memory / 2**30:.2f}", si(float(fits.needed), "B"), share, si(left, "B")]
        most = [_size(fits.batch_at_most(memory)), _size(fits.context_at_most(memory))]
        rows.append([device.title, *room, "yes" if left >= 0 else "no", *most])
    return align(rows)
