"""The one exception for bad input: a sentence that names the key and what is allowed.

The command line prints it and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one sentence with the valid choices."""


def near(given: object, names: Iterable[str]) -> list[str]:
    """The name that is most like the given one, if any is."""
    from difflib import get_close_matches

    return get_close_matches(str(given), list(names), n=1, cutoff=0.5)


def unknown(kind: str, given: object, valid: Iterable[str]) -> InputError:
    """An InputError for a name that does not exist, with the nearest valid one first.

    >>> str(unknown("mode", "bse", ["tiny", "base"]))
    "unknown mode 'bse', did you mean 'base'? Valid: base, tiny"
    """
    names = sorted(str(v) for v in valid)
    alike = near(given, names)
    hint = f", did you mean {alike[0]!r}? Valid" if alike else "; valid"
    return InputError(f"unknown {kind} {given!r}{hint}: {', '.join(names)}")


def choose(kind: str, given: str, valid: Iterable[str]) -> str:
    """The given name if it is one of the valid ones; raises InputError if not."""
    names = list(valid)
    if given not in names:
        raise unknown(kind, given, names)
    return given
