"""A GPU that is not there: a bench whose kernels take what the laws of a device of the catalogue say, times changes."""

from types import SimpleNamespace

import numpy as np

from modelmeter.calibrate.gpu import LAWS, _work
from modelmeter.calibrate.timing import Answer, Call
from modelmeter.seconds.constants import constants_of

OVERHEAD = 5e-3
"""Seconds that asking takes beside the kernel: a graph is captured."""


def properties(device, title=None, **told):
    """What torch would tell of a device."""
    major, minor = {"Hopper": (9, 0), "Ada": (8, 9), "Ampere": (8, 0), "Blackwell": (12, 0)}[device.architecture]
    return SimpleNamespace(
        name=title or device.title, major=major, minor=minor, multi_processor_count=int(device.multiprocessors),
        total_memory=int(device.memory_bytes * 1.05), L2_cache_size=int(device.l2_bytes), **told,
    )  # fmt: skip


class Simulated:
    """A device whose constants are multiplied by `changes`, and whose clock goes on by what it was asked."""

    def __init__(self, device, noise=0.05, launch=1.0, stream=1.0, link=25e9, fails=()):
        self.device, self.noise, self.link, self.fails = device, noise, link, fails
        self.changes = {"launch": launch, "stream": stream}
        self.random, self.now, self.many = np.random.default_rng(0), 0.0, 0

    def clock(self):
        return self.now

    def seconds(self, question):
        """What one call takes, without noise."""
        if question.law == "link":
            return 8e-6 + question.work["moved"] / self.link
        law = LAWS[question.law]
        known = constants_of(law, self.device, "bf16" if law.name != "product" else question.variant).constants
        changed = {name: value * self.changes.get(name, 1.0) for name, value in known.items()}
        work = _work([Answer(question, 0.0, 1, 0.0, 0.0)], self.device)
        return float(law.parts(changed, self.device, work).seconds[0])

    def calls(self, question, first, many):
        if question.variant in self.fails:
            raise RuntimeError(f"no kernel for {question.variant}\nmore of it")
        seconds = self.seconds(question)
        found = [Call(seconds * float(np.exp(self.noise * self.random.normal())), 1.0) for _ in range(many)]
        self.now += OVERHEAD + sum(max(call.seconds, 2e-3) for call in found)
        self.many += 1
        return found
