"""Sentences in a language: the catalogues `text/<language>.yaml`, filled with computed values.

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
from modelmeter.report.findings import Finding

LANGUAGES = ("en", "zh")


@cache
def catalogue(language: str) -> dict[str, Any]:
    """The sentences and words of a language. Raises InputError for one that there is none of."""
    import yaml

    choose("language", language, LANGUAGES)
    text = files("modelmeter.report").joinpath("text", f"{language}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@dataclass(frozen=True)
class Language:
    """Says things in one language."""

    code: str

    def say(self, key: str, **values: Any) -> str:
        """The sentence of a key; a value of `trend` is a word of the catalogue."""
        words = {k: self.word(str(v)) if k in ("trend", "kind") else v for k, v in values.items()}
        return str(catalogue(self.code)["sentences"][key]).format(**words)

    def finding(self, finding: Finding) -> str:
        """A finding as a sentence."""
        key, values = finding
        return self.say(key, **values)

    def word(self, word: str) -> str:
        """A heading, cell or trend in this language; what the catalogue does not have stays as it is."""
        words: Mapping[str, str] = catalogue(self.code)["words"]
        return words.get(word, word)
