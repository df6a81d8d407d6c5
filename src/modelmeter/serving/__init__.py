"""Serving: from seconds a step to the load that a service bears, pages a day and money.

It knows requests, step times that somebody gives, queues and prices; no kernel, no model. docs/serving.md tells all.
"""

from modelmeter.serving.closed_form import ClosedForm
from modelmeter.serving.distributions import Distribution, Empirical, Fixed, LogNormal, Uniform
from modelmeter.serving.requests import Image, Mix, Requests
from modelmeter.serving.served import Served, Spread
from modelmeter.serving.service import Apart, Engine, Service
from modelmeter.serving.simulation import Simulation
from modelmeter.serving.steps import StepTimes, Table
from modelmeter.serving.trace import read_trace

__all__ = [
    "Apart", "ClosedForm", "Distribution", "Empirical", "Engine", "Fixed", "Image", "LogNormal", "Mix", "Requests",
    "Served", "Service", "Simulation", "Spread", "StepTimes", "Table", "Uniform", "read_trace",
]  # fmt: skip
