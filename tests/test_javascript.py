"""Programs as JSON: what a short JavaScript makes of them is what Python makes of them."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from modelmeter import layers as mm
from modelmeter.programs.cost import COUNTS

SCRIPT = Path(__file__).with_name("evaluate.js")
POINTS = 1000
RANGES = {"b": 64, "steps": 2000, "first": 9000, "s": 9000, "image": 9000}
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def in_javascript(program, points):
    given = json.dumps({"program": program, "points": points})
    done = subprocess.run(["node", SCRIPT], input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def assert_agree(program, points):
    """Whole numbers exactly (a JSON string holds them at any size), expectations to the last bits."""
    content = program.as_json()
    assert json.loads(json.dumps(content)) == content
    assert content["counts"] == [[part, count] for part in program.costs for count in COUNTS]
    for point, found in zip(points, in_javascript(content, points), strict=True):
        costs = program(**dict(zip(content["names"], point, strict=True)))
        for (part, count), value in zip(content["counts"], found, strict=True):
            expected = getattr(costs[part], count)
            if isinstance(expected, int) and isinstance(value, str):
                assert int(value) == expected, (part, count, point)
            else:  # the expected number of distinct experts
                assert float(value) == pytest.approx(float(expected), rel=1e-12), (part, count, point)
                assert count in ("weight_io_bytes",), (part, count, expected)


def drawn(program, seed):
    rng = random.Random(seed)
    return [[rng.randint(1, RANGES.get(name.split("_")[0], 64)) for name in program.names] for _ in range(POINTS)]


def test_the_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) <= 100


@needs_node
@pytest.mark.parametrize("runtime", ["flash", "eager"])
@pytest.mark.parametrize("stage", ["vision", "prefill", "decode"])
def test_javascript_agrees_with_python_on_a_thousand_points(model, stage, runtime):
    program = model.program(stage, model.workload(grid="2x3", runtime=runtime), depth=1)
    assert_agree(program, drawn(program, stage))


@needs_node
@pytest.mark.parametrize("causal", ["full", "exact"])
def test_windows_and_fractions_of_bytes_agree(causal):
    from modelmeter.models.vlm import text_model

    layers = tuple(
        mm.ResidualBlock(mm.CausalAttention(32, 2, 2, 8, mm.RotaryEmbedding(8), w), mm.GatedMLP(32, 48), mm.RMSNorm(32))
        for w in (16, None, 300)
    )
    model = text_model("windows", mm.CausalLM(mm.TokenEmbedding(100, 32), layers, mm.RMSNorm(32), mm.LMHead(100, 32)))
    program = model.program("decode", model.text(5, causal=causal, precision={"weights": "int4", "kv": "fp8"}))
    assert_agree(program, drawn(program, causal))
