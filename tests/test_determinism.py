"""No result depends on hash seeds or memory addresses: three runs are bitwise equal."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, random
import numpy as np
noise = [object() for _ in range(random.randrange(100_000))]  # moves what comes next in memory
import modelmeter
from modelmeter import Repeat, layers as mm

def show(cost):
    for name, value in cost.as_dict().items():
        value = np.asarray(value, dtype=np.float64)
        print(name, value.tobytes().hex())

model = modelmeter.load_model("deepseek_ocr")
bits = {"weights": 4.1, "activations": 16.3, "kv": 5.7}
for runtime in ("eager", "flash", "fused", "compulsory"):
    work = model.workload(
        grid=(np.array([1, 2, 3]), np.array([2, 5, 7])), batch=np.array([1, 3, 7]), prompt_tokens=11,
        decode_steps=np.array([1, 10, 99]), precision=bits, runtime=runtime,
    )
    page = model.workload(grid="2x3", precision=bits, runtime=runtime)
    for stage in ("vision", "prefill", "decode"):
        for part, cost in model.breakdown(stage, work, 2).items():
            print(part)
            show(cost)
        print(json.dumps(model.program(stage, page, 1).as_json()))
        print(model.kernels(stage, page))
        print(model.program(stage, page).costs)
thirds = mm.MLP(np.array([3.0, 8.0, 12.0]), np.array([7.0, 9.0, 11.0]))  # hyper-parameters as arrays
show(Repeat(thirds, np.array([2.0, 5.0, 9.0])).cost(b=np.array([1.0, 3.0, 5.0]), s=3, precision=bits))
"""


@pytest.fixture(scope="module")
def runs():
    def run(seed):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        ).stdout

    return [run(seed) for seed in ("0", "1", "4242")]


def test_three_runs_are_bitwise_equal(runs):
    first, *others = runs
    assert len(first.splitlines()) > 500
    for other in others:
        for a, b in zip(first.splitlines(), other.splitlines(), strict=True):
            assert a == b


def test_equal_factors_are_one_whatever_object_they_are():
    import numpy as np

    from modelmeter import layers as mm
    from modelmeter.programs.cost import COUNTS

    one, same, other = (mm.MLP(4, np.array(widths)) for widths in ([3.0, 5.0], [3.0, 5.0], [3.0, 6.0]))
    first, second, third = (layer.program().costs[""] for layer in (one, same, other))
    assert all(getattr(first, count) is getattr(second, count) for count in COUNTS)
    assert first.tensor_core_flops is not third.tensor_core_flops
    gated, again = mm.GatedMLP(4, 8), mm.GatedMLP(4, 8)
    assert gated.graph().ops[0].equation is again.graph().ops[0].equation
    assert [(op.kind, op.reads, op.writes, op.tensor, op.cuda, op.composite) for op in gated.graph().ops] == [
        (op.kind, op.reads, op.writes, op.tensor, op.cuda, op.composite) for op in again.graph().ops
    ]
