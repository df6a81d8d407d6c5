"""What the commands `gguf` and `inspect` say."""

from __future__ import annotations

from typing import Any

from modelmeter.checkpoints.inspect import compare, comparison_text, header_text, model_in, read_header
from modelmeter.checkpoints.layout import layout_of, layout_text
from modelmeter.config import load_model
from modelmeter.errors import InputError, choose
from modelmeter.programs.formats import FORMATS
from modelmeter.programs.policies import POLICIES


def gguf(options: Any) -> str:
    """The predicted file of a model. Raises InputError."""
    policy = choose("quant", options.quant.lower(), POLICIES)
    others = choose("format", options.others, [name for name, form in FORMATS.items() if not form.shaped])
    given = options.metadata_bytes
    if given is not None and not given.isdecimal():
        raise InputError(f"--metadata-bytes must be a whole number, not {given!r}")
    layout = layout_of(load_model(options.model, options.changes), policy, others)
    return layout_text(layout, None if given is None else int(given), options.tensors)


def inspect(options: Any) -> tuple[str, bool]:
    """What a file holds, compared with a model, and whether they are equal. Raises InputError."""
    header = read_header(options.file)
    model = load_model(options.model, options.changes) if options.model else model_in(header)
    return f"{header_text(header)}\n\n{comparison_text(header, model)}", not compare(header, model)
