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

import yaml

from modelmeter.errors import choose
from modelmeter.sweep.columns import TEXTS
from modelmeter.sweep.findings import Finding

LANGUAGES = ("en", "zh")
_WORDS = ("trend", "kind", "title", "verdict")
"""Values that are words of the catalogue themselves."""


@cache
def catalogue(language: str) -> dict[str, Any]:
    """The sentences and words of a language. Raises InputError for one that there is none of."""
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

    @property
    def text(self) -> dict[str, Any]:
        """The catalogue of this language."""
        return catalogue(self.code)

    def file(self, page: str) -> str:
        """The file of a page in this language; the first one has no suffix."""
        return f"{page}.md" if self.code == LANGUAGES[0] else f"{page}.{self.code}.md"

    def say(self, key: str, **values: Any) -> str:
        """The sentence of a key, its trends and titles in the words of this language, pairs as ranges."""
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = self.word("range").join(dict.fromkeys(map(str, value)))
            elif name in _WORDS:
                values[name] = self.word(str(value))
        return str(self.text["sentences"][key]).format(**values)

    def finding(self, finding: Finding) -> str:
        """A finding as a sentence."""
        return self.say(finding[0], **finding[1])

    def listed(self, values: Mapping[str, str]) -> str:
        """Values with their names in this language."""
        return self.word(", ").join(f"{self.word(name)} {value}" for name, value in values.items())

    def heads(self, *words: str) -> str:
        """The headings of a Markdown table."""
        return f"| {' | '.join(map(self.word, words))} |"

    def word(self, word: str) -> str:
        """A heading, cell or trend in this language; what the catalogue does not have stays as it is."""
        words: Mapping[str, str] = self.text["words"]
        parts = [words[part] for part in word.split(" or ") if part in words]
        return words.get(" or ", " or ").join(parts) if len(parts) > word.count(" or ") else words.get(word, word)
