"""Sentences in a language: the catalogues `text/<language>.yaml` and those beside the sweeps, filled with values.

A catalogue maps keys to sentences with {placeholders}; `words` maps the words that tables and trends use.
Every language has the same keys and placeholders; a test holds that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from modelmeter.errors import choose
from modelmeter.sweep.columns import TEXTS
from modelmeter.sweep.findings import Finding

LANGUAGES = ("en", "zh")
_WORDS = ("trend", "kind", "title")
"""Values that are words of the catalogue themselves."""


@cache
def catalogue(language: str) -> dict[str, Any]:
    """The sentences and words of a language. Raises InputError for one that there is none of."""
    import yaml

    choose("language", language, LANGUAGES)
    text = files("modelmeter.report").joinpath("text", f"{language}.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    for declared in TEXTS:
        for part, entries in declared.get(language, {}).items():
            found[part] |= entries
    return found


@dataclass(frozen=True)
class Language:
    """Says things in one language."""

    code: str

    def say(self, key: str, **values: Any) -> str:
        """The sentence of a key, its trends and titles in the words of this language, pairs as ranges."""
        words = {k: self._value(k, v) for k, v in values.items()}
        return str(catalogue(self.code)["sentences"][key]).format(**words)

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            low, high = value
            return low if low == high else f"{low}{self.word('range')}{high}"
        return self.word(str(value)) if name in _WORDS else value

    def finding(self, finding: Finding) -> str:
        """A finding as a sentence."""
        key, values = finding
        return self.say(key, **values)

    def word(self, word: str) -> str:
        """A heading, cell or trend in this language; what the catalogue does not have stays as it is."""
        words: Mapping[str, str] = catalogue(self.code)["words"]
        parts = word.split(" or ")
        if len(parts) > 1 and all(part in words for part in parts):
            return words[" or "].join(words[part] for part in parts)
        return words.get(word, word)
