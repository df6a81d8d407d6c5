"""Shared fixtures: the model as shipped."""

import pytest
from hypothesis import HealthCheck, settings

import modelmeter

settings.register_profile("modelmeter", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("modelmeter")


@pytest.fixture(scope="session")
def model():
    return modelmeter.load_model("deepseek_ocr")
