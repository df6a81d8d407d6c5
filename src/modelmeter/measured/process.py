"""What a process holds: the largest room of a request, and what its engine keeps beside the model.

The room is exact (`fits.py`); what engines hold beside is not told by them: `processes` of names.yaml, all recalled.
"""

from __future__ import annotations

from modelmeter.fits import Fits
from modelmeter.host import Span
from modelmeter.measured.rows import names


def memory_of(fits: Fits) -> Span:
    """Bytes of a process that serves a request: weights once or more, what lives, the engine's libraries and kernels.

    `copies` of the weights: a mapped file or host tensors beside those of the device, as the engine may let go or not.
    """
    weights, needed = float(fits.rooms[0].weights), float(fits.needed)
    told = names()["processes"]
    found = told.get(str(fits.work.runtime.name), told["*"])
    more, beside = Span(*(max(many - 1, 0) * weights for many in found["copies"])), Span(*map(float, found["beside"]))
    return Span(needed, needed, needed) + more + beside
