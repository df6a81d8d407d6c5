"""Trace what transformers has and compare with torch's own counter at sizes that no trace used; write the list.

python scripts/trace_survey.py out.jsonl [SHARD/SHARDS]   one line of JSON a model, appended; known ones are skipped
python scripts/trace_survey.py --write out.jsonl...       docs/trace-survey.md from these lines
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modelmeter.errors import InputError
from modelmeter.models.traced import TracedLayer
from modelmeter.tracing import causal
from modelmeter.tracing.api import trace
from modelmeter.tracing.reference import forward_flops, prefill_flops
from modelmeter.tracing.repeats import folded
from modelmeter.tracing.written import piece

LAYERS, SECONDS = int(os.environ.get("LAYERS", 2)), 120
POINTS = ({"b": 2, "s": 7}, {"b": 3, "s": 30})
DOC = Path(__file__).parent.parent / "docs" / "trace-survey.md"
VISION = {
    "BeitModel": "x[b 3 224 224]", "CLIPVisionModel": "x[b 3 224 224]", "ConvNextModel": "x[b 3 u v]",
    "DeiTModel": "x[b 3 224 224]", "Dinov2Model": "x[b 3 518 518]", "HieraModel": "x[b 3 224 224]",
    "IJepaModel": "x[b 3 224 224]", "InternVLVisionModel": "x[b 3 448 448]", "PvtV2Model": "x[b 3 224 224]",
    "RegNetModel": "x[b 3 u v]", "ResNetModel": "x[b 3 u v]", "SamVisionModel": "x[b 3 1024 1024]",
    "SegformerModel": "x[b 3 512 512]", "SiglipVisionModel": "x[b 3 224 224]", "SwinModel": "x[b 3 224 224]",
    "Swinv2Model": "x[b 3 256 256]", "ViTModel": "x[b 3 224 224]", "ViTMSNModel": "x[b 3 224 224]",
}  # fmt: skip
"""Vision towers by class, with the input that each is made for."""
IMAGES = ({"b": 2, "u": 256, "v": 320}, {"b": 3, "u": 333, "v": 250})


class TooSlow(BaseException):
    """A model that takes longer than SECONDS."""


def _alarm(*_: object) -> None:
    raise TooSlow


def _small(config: object) -> object:
    """The default configuration with LAYERS layers at most."""
    for name in ("decoder_layers", "encoder_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(LAYERS, getattr(config, name)))
    kept = getattr(config, "num_hidden_layers", None)
    if not isinstance(kept, int) or kept <= LAYERS or hasattr(config, "depths"):
        return config
    try:
        made = type(config)(num_hidden_layers=LAYERS)
        if made.num_hidden_layers == LAYERS:
            return made
    except Exception:  # a type that cannot be made so is cut below
        pass
    with suppress(NotImplementedError):  # some have a number of their own for each side
        config.num_hidden_layers = LAYERS
    return config


def _module(name: str, config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(transformers, name)._from_config(config, dtype=torch.bfloat16)


def language_model(kind: str, name: str) -> str:
    """ "equal", or why not."""
    config = CONFIG_MAPPING[kind]()
    wanted = getattr(transformers, name).config_class
    if wanted is not None and not isinstance(config, wanted):
        config = config.get_text_config(decoder=True)
    module = _module(name, _small(config))
    run = causal.prefill(module, name, {"b": 5, "s": 11})
    content = {"name": "prefill", "sizes": ["b", "s"], "pieces": [piece(folded(run))]}
    layer = TracedLayer(content)
    for point in POINTS:
        ours, theirs = layer.cost(**point).tensor_core_flops, prefill_flops(module, **point)
        if ours != theirs:
            trace(module, name=name)  # refuses what it finds to differ
            return f"WRONG at {point}: {ours} against {theirs}"
    return "equal"


def vision_tower(name: str, axes: str) -> str:
    """ "equal", or why not."""
    module = _module(name, _small(getattr(transformers, name).config_class()))
    layer = trace(module, axes, name=name).layer()
    for point in IMAGES:
        sizes = {axis: point[axis] for axis in layer.sizes.split()}
        ours, theirs = layer.cost(**sizes).tensor_core_flops, forward_flops(module, axes, **sizes)
        if ours != theirs:
            return f"WRONG at {sizes}: {ours} against {theirs}"
    return "equal"


def _told(run: object, *arguments: str) -> str:
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        return run(*arguments)
    except InputError as error:
        return f"refused: {error}"
    except TooSlow:
        return f"not compared: longer than {SECONDS} s"
    except Exception as error:  # a module that cannot be made or run here at all
        return f"not compared: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        signal.alarm(0)


def survey(out: Path, shard: int, shards: int) -> None:
    """Append a line for each model that has none."""
    known = {json.loads(line)["name"] for line in out.read_text().splitlines()} if out.exists() else set()
    tasks = [("vision", name, axes) for name, axes in VISION.items()]
    tasks += [("causal", kind, name) for kind, name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())]
    for number, (group, *arguments) in enumerate(tasks):
        if number % shards != shard or arguments[0] in known:
            continue
        told = _told(vision_tower if group == "vision" else language_model, *arguments)
        line = {"group": group, "name": arguments[0], "class": arguments[-1], "told": told}
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _table(rows: list[dict[str, str]]) -> list[str]:
    return ["| type | why |", "| --- | --- |", *(f"| {r['name']} | {_cell(r['told'])} |" for r in rows)]


def _cell(text: str) -> str:
    text = text.partition(": ")[2].replace("|", "\\|")
    return text if len(text) < 260 else text[:257] + "..."


def page(rows: list[dict[str, str]]) -> str:
    """docs/trace-survey.md."""
    lines = [
        "# What can be traced", "",
        f"Generated by scripts/trace_survey.py with torch {torch.__version__.partition('+')[0]} and transformers "
        f"{transformers.__version__}. Each model is traced once with symbolic sizes, its own default configuration and "
        "two to four layers, and compared with torch's FlopCounterMode at two sizes that no trace used: prompts of "
        + " and ".join(f"{p['b']} x {p['s']} tokens" for p in POINTS) + ", or other numbers and sizes of images. "
        "*Refused* is an error in one sentence instead of a formula, or of a number outside its domain; *not compared* "
        "is what cannot be made or run with default values here, or not in the time that the survey gives.",
    ]  # fmt: skip
    for group, title in (("causal", "Causal language models"), ("vision", "Vision towers")):
        own = sorted((r for r in rows if r["group"] == group), key=lambda r: r["name"])
        counts = Counter(r["told"].partition(":")[0].partition(" at")[0] for r in own)
        told = ", ".join(f"{counts[what]} {what}" for what in ("equal", "refused", "not compared"))
        lines += ["", f"## {title}", "", f"{len(own)} types: {told}, {counts['WRONG']} wrong.", ""]
        lines += [f"Equal: {', '.join(r['name'] for r in own if r['told'] == 'equal')}."]
        for what in ("WRONG", "refused", "not compared"):
            some = [r for r in own if r["told"].startswith(what)]
            lines += ["", f"{what.capitalize()}:", "", *_table(some)] if some else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if sys.argv[1] == "--write":
        found = {}
        for path in sys.argv[2:]:
            for line in Path(path).read_text().splitlines():
                row = json.loads(line)
                found[row["group"], row["name"]] = row
        DOC.write_text(page(list(found.values())), encoding="utf-8")
    else:
        shard, shards = map(int, (sys.argv[2] if len(sys.argv) > 2 else "0/1").split("/"))
        survey(Path(sys.argv[1]), shard, shards)
