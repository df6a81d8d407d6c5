"""The commands `gguf` and `inspect`: their arguments, what they say, their exit status.

What a command needs is imported when it runs, so that its help is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmeter.errors import InputError, choose

CHANGES = {"nargs": "*", "metavar": "KEY=VALUE", "help": "other components or numbers of the model"}


def gguf(parser: Any, arguments: Sequence[str]) -> tuple[str, int]:
    """The predicted file of a model. Raises InputError."""
    parser.add_argument("model", help="a model, or where its config.json is")
    parser.add_argument("changes", **CHANGES)
    parser.add_argument("--quant", default="q4_k_m", metavar="NAME", help="how llama.cpp stores it (q4_k_m)")
    parser.add_argument("--others", default="fp16", metavar="FORMAT", help="format of all but the decoder (fp16)")
    parser.add_argument("--metadata-bytes", metavar="N", help="bytes of metadata, the tokenizer's among them")
    parser.add_argument("--split-max-size", metavar="SIZE", help="in parts of at most so many M or G bytes of tensors")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    options = parser.parse_args(arguments)
    from modelmeter.checkpoints.layout import layout_of, layout_text
    from modelmeter.config import load_model
    from modelmeter.programs.formats import FORMATS
    from modelmeter.programs.policies import POLICIES

    policy = choose("quant", options.quant.lower(), POLICIES)
    others = choose("format", options.others, [name for name, form in FORMATS.items() if not form.shaped])
    given = options.metadata_bytes
    if given is not None and not given.isdecimal():
        raise InputError(f"--metadata-bytes must be a whole number, not {given!r}")
    layout = layout_of(load_model(options.model, options.changes), policy, others)
    most = None if options.split_max_size is None else _size(options.split_max_size)
    return layout_text(layout, None if given is None else int(given), options.tensors, most), 0


def _size(text: str) -> int:
    """Bytes of a size such as 2G or 500M."""
    number, unit = text[:-1], {"M": 10**6, "G": 10**9}.get(text[-1:])
    if not number.isdecimal() or not int(number) or unit is None:
        raise InputError(f"--split-max-size must be a whole number with M or G, such as 2G, not {text!r}")
    return int(number) * unit


def inspect(parser: Any, arguments: Sequence[str]) -> tuple[str, int]:
    """What a file holds, compared with a model; status 1 where they differ. Raises InputError."""
    parser.add_argument("file", help="a .gguf, a .safetensors, its index.json or the folder of such")
    parser.add_argument("model", nargs="?", help="what to compare with; of the file's own metadata by default")
    parser.add_argument("changes", **CHANGES)
    options = parser.parse_args(arguments)
    from modelmeter.checkpoints.inspect import compare, comparison_text, header_text, model_in, read_header
    from modelmeter.config import load_model

    header = read_header(options.file)
    model = load_model(options.model, options.changes) if options.model else model_in(header)
    return f"{header_text(header)}\n\n{comparison_text(header, model)}", int(bool(compare(header, model)))
