"""ModelMeter: an analytical performance model of vision-language and OCR inference.

`load_model("deepseek_ocr")` gives a model, `model.workload(image="page.png")` a workload, and
`model.cost("prefill", workload)` a StageCost. Start with docs/tour.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelmeter.config import load_model as load_model
    from modelmeter.errors import InputError as InputError
    from modelmeter.layers.base import BaseLayer as BaseLayer
    from modelmeter.layers.base import Repeat as Repeat
    from modelmeter.layers.base import Sequence as Sequence
    from modelmeter.programs.cost import StageCost as StageCost
    from modelmeter.programs.precision import Precision as Precision
    from modelmeter.runtimes.runtime import Runtime as Runtime
    from modelmeter.sizes import symbol as symbol
    from modelmeter.splits import split as split
    from modelmeter.tracing.api import save as save
    from modelmeter.tracing.api import trace as trace
    from modelmeter.workload import Workload as Workload

__version__ = "0.1.0"

_HOME = {
    "BaseLayer": "layers.base",
    "InputError": "errors",
    "Precision": "programs.precision",
    "Repeat": "layers.base",
    "Runtime": "runtimes.runtime",
    "Sequence": "layers.base",
    "StageCost": "programs.cost",
    "Workload": "workload",
    "load_model": "config",
    "save": "tracing.api",
    "split": "splits",
    "symbol": "sizes",
    "trace": "tracing.api",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `--help` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'modelmeter' has no attribute {name!r}")
    return getattr(import_module(f"modelmeter.{_HOME[name]}"), name)
