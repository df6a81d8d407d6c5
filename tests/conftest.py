"""Shared fixtures: the model as shipped."""

import gc

import pytest
from hypothesis import HealthCheck, settings

import modelmeter

settings.register_profile("modelmeter", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("modelmeter")


LONG = (
    "test_regenerated",
    "test_decoders",
    "test_split",
    "test_fits",
    "test_gguf",
    "test_plan_command",
    "test_report",
    "test_timed_sweeps",
    "test_sweeps",
    "test_encoders",
    "test_eager",
    "test_torch",
    "test_places",
    "test_docs",
    "test_trace",
)
"""Files that take minutes: they begin first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish():
    """What is imported and collected stays: the collector of garbage need not walk it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def model():
    return modelmeter.load_model("deepseek_ocr")
