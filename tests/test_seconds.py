"""Laws of time: what holds whatever the constants, and what the shipped ones are worth on a sample."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelmeter import cli, load_model
from modelmeter import layers as mm
from modelmeter.catalogue import load_devices, load_host
from modelmeter.device import Device
from modelmeter.errors import InputError
from modelmeter.seconds import seconds_of, seconds_of_work
from modelmeter.seconds.attention import seen
from modelmeter.seconds.constants import LAWS, constants_of, shipped
from modelmeter.seconds.fit import fitted
from modelmeter.seconds.links import TRANSFER
from modelmeter.seconds.measured import read
from modelmeter.seconds.mixture import loads
from modelmeter.seconds.page import MARK
from modelmeter.seconds.score import unseen
from modelmeter.seconds.shapes import attention_work, mixture_work, multiplied, product_work
from modelmeter.seconds.train import TRAINED, residuals
from modelmeter.times import Times

DEVICES = {device.name: device for device in load_devices()}
H100 = DEVICES["h100_sxm"]
SAMPLE = Path(__file__).parent / "data" / "kernels"
BARE = Device("bare", "Bare", 1e14, 1e13, 1e12, 1e10, "a sheet")


@pytest.fixture(scope="module")
def kernels():
    model = load_model("deepseek_ocr")
    return model.kernels("decode", model.workload(grid="2x3", prompt_tokens=20, decode_steps=9))


def product(m, n, k, device=H100, form="bf16", warm=False):
    return seconds_of_work("product", form, product_work(device, form, m, n, k, warm=warm), device)


def test_every_device_of_the_catalogue_says_where_its_figures_come_from():
    assert len(DEVICES) >= 40
    for device in DEVICES.values():
        lines = Path(f"configs/device/{device.name}.yaml").read_text().partition("\nlaws:")[0].splitlines()
        for line in lines:
            if line.split(":")[0] in ("multiprocessors", "clock_hz", "l2_bytes", "watts", "link_bytes_per_s"):
                assert "#" in line, (device.name, line)


def test_a_known_device_does_not_multiply_faster_than_its_units_allow():
    cycles = {"Ampere": 2049, "Hopper": 4100, "Ada": 1025, "Blackwell": 1025, "Blackwell datacenter": 8200}
    for device in DEVICES.values():
        if device.architecture in cycles:
            each = device.tensor_flops_per_s / device.need("multiprocessors") / device.need("clock_hz")
            assert each <= cycles[device.architecture], device.name


def test_no_kernel_in_a_model_is_faster_than_its_bytes(kernels):
    for estimate, kernel in zip(seconds_of(kernels, H100), kernels, strict=True):
        assert estimate.seconds > kernel.io_bytes / H100.memory_bytes_per_s
        assert estimate.low <= estimate.seconds <= estimate.high
        assert estimate.binds in ("compute", "memory", "launch")


def test_a_kernel_that_does_nothing_costs_five_thousand_cycles():
    for name in ("a100_80gb", "h100_sxm", "rtx_pro_6000_server"):
        work = {"bytes": 64.0, "operations": 0.0, "warm": False}
        cycles = seconds_of_work("stream", "bf16", work, DEVICES[name]).seconds * DEVICES[name].need("clock_hz")
        assert 4800 < cycles < 6000


def test_a_warm_loop_is_never_slower_but_for_its_host():
    sizes = np.array([32.0, 256, 1024, 4096, 16384])
    for device in (H100, DEVICES["a100_80gb"], DEVICES["l40s"]):
        cold, warm = (product(16, sizes, sizes, device, warm=w).seconds for w in (False, True))
        assert np.all(warm <= cold * (1 + 1e-12))


def test_twice_the_inner_loop_takes_longer_and_at_most_twice():
    k = np.array([256.0, 1024, 4096, 16384])
    once, twice = product(512, 4096, k).seconds, product(512, 4096, 2 * k).seconds
    assert np.all(twice > once) and np.all(twice <= 2 * once)


def test_arrays_are_what_points_are():
    m = np.array([1.0, 7, 64, 500, 4096])
    together = product(m, 4096, 1024).seconds
    assert together == pytest.approx(np.array([product(x, 4096, 1024).seconds for x in m]))


def test_kernels_together_are_what_they_are_alone(kernels):
    together = seconds_of(kernels, H100)
    alone = [seconds_of([kernel], H100)[0] for kernel in kernels]
    assert [e.seconds for e in together] == pytest.approx([e.seconds for e in alone])


def test_workloads_together_are_what_they_are_alone():
    layer, t = mm.LlamaAttention(d=512, g=2, r=4, e=64), np.array([100.0, 1000, 50_000])
    many = layer.program().kernels(b=np.ones(3), s=np.ones(3), t=t)
    found = seconds_of(many, H100)
    for i, one in enumerate(t):
        points = seconds_of(layer.program().kernels(b=1, s=1, t=int(one)), H100)
        for together, point in zip(found, points, strict=True):
            assert np.broadcast_to(together.seconds, 3)[i] == pytest.approx(point.seconds)


def test_attention_is_told_by_its_shape():
    layer = mm.LlamaAttention(d=512, g=2, r=4, e=64)
    [kernel] = [k for k in layer.program().kernels(b=3, s=5, t=9) if k.attention]
    assert kernel.attention == {
        "batch": 3, "kv_heads": 2, "heads": 8, "s": 5, "t": 9, "width": 64, "values": 64, "window": 0, "causal": 1,
    }  # fmt: skip
    windowed = mm.CausalAttention(512, 2, 4, 64, window=4)
    [kernel] = [k for k in windowed.program().kernels(b=1, s=2, t=9) if k.attention]
    assert kernel.attention["window"] == 4 and kernel.attention["t"] == 5


@pytest.mark.parametrize("window", [0, 3, 64])
def test_blocks_of_queries_see_what_their_queries_see(window):
    s = t = 512
    block = 32
    ends = np.arange(block, s + 1, block)
    keys = np.minimum(ends, window + block) if window else ends
    longest, mean = seen(float(s), float(t), float(window), float(block), True)
    assert longest == keys.max() and mean == pytest.approx(keys.mean(), rel=0.05)


def test_loads_of_all_devices_are_all_picks_and_the_heaviest_has_no_less_than_its_share():
    tokens, active, experts = 1024, 8, 128
    for alpha in (0.0, 1.01, 1.2):
        for devices in (1, 8, 128):
            found = loads(tokens, active, experts, devices, alpha)
            assert tokens * active / devices <= found.total <= tokens * active * 1.0001
            assert found.reached <= found.experts == experts / devices
            assert found.rows.max() <= tokens
        assert loads(tokens, active, experts, 1, alpha).total == pytest.approx(tokens * active)


@pytest.mark.parametrize("alpha", [0.0, 1.01, 1.2])
def test_one_token_reaches_as_many_experts_as_it_picks(alpha):
    assert loads(1, 8, 128, 1, alpha).reached == pytest.approx(8)
    assert loads(1, 8, 128, 128, alpha).reached == 1


def test_loads_of_many_shapes_are_those_of_each():
    tokens, alpha = np.array([1.0, 64, 4096]), np.array([1.2, 0, 1.01])
    together = loads(tokens, 8.0, 256.0, 4.0, alpha)
    alone = [loads(t, 8, 256, 4, a) for t, a in zip(tokens, alpha, strict=True)]
    assert together.total.tolist() == [float(found.total) for found in alone]
    assert together.tiles(np.array([16.0, 64, 128])).tolist() == [
        float(found.tiles(np.float64(rows))) for found, rows in zip(alone, (16, 64, 128), strict=True)
    ]


def mixture(tokens, device=H100, form="bf16", devices=1, gates=2.0, warm=False):
    found = loads(tokens, 8, 128, devices, 1.01)
    return seconds_of_work(
        "mixture", form, mixture_work(device, form, 2048, 768, tokens, 8, found, gates, warm), device
    )


def test_a_mixture_takes_no_less_than_reading_the_experts_that_it_reaches():
    for device in (H100, DEVICES["l40s"], DEVICES["rtx_pro_6000_server"]):
        for tokens in (1, 64, 4096):
            read = 3 * 2048 * 768 * 2 * loads(tokens, 8, 128, 1, 1.01).reached
            assert mixture(tokens, device).seconds > read / device.memory_bytes_per_s


def test_a_gate_costs_and_devices_that_share_the_experts_save():
    assert mixture(1024, gates=1.0).seconds < mixture(1024).seconds
    assert mixture(1024, devices=8).seconds < mixture(1024).seconds


def test_rows_of_experts_elsewhere_are_written_by_triton_and_not_by_cutlass():
    found = loads(8192, 8, 128, 32, 0)
    written = [
        mixture_work(DEVICES[name], "bf16", 2048, 768, 8192, 8, found)["written"]
        for name in ("h100_sxm", "rtx_pro_6000_server")
    ]
    assert written == [8192 * 8, found.total]


def test_tiles_of_a_mixture_grow_with_what_they_hold():
    for form in ("bf16", "fp8_block.triton", "int4_wo"):
        rows = [
            mixture_work(H100, form, 2048, 768, tokens, 8, loads(tokens, 8, 128, 1, 0))["tiles"][0][0]
            for tokens in (1, 64, 512, 8192)
        ]
        assert rows == sorted(rows) and rows[0] < rows[-1]


def test_a_decode_step_copies_only_with_several_sequences_and_kv_heads():
    a100 = DEVICES["a100_80gb"]
    kernels = [
        attention_work(a100, "decode", "bf16", b, 32, g, 128, 1, 64)["kernels"] for b, g in ((1, 8), (2, 1), (2, 8))
    ]
    assert [int(k) for k in kernels] == [2, 2, 4]


def test_a_large_cache_of_8_bits_is_read_at_the_bandwidth_by_tensorrt_llm_alone():
    model, [device] = load_model("llama_3_1_8b"), load_devices(["h100_sxm"])
    work = model.text(2048, decode_steps=2, batch=448, runtime="vllm", precision={"kv": "fp8"})
    cache = 2 * 448 * 2048 * 8 * 128 / device.memory_bytes_per_s
    for engine, least, most in (("tensorrt_llm", 1.0, 1.3), ("vllm", 1.5, 2.5)):
        kernels = Times(model, work, device, load_host(), engine).stages["decode"].kernels
        [slowest] = {float(np.mean(one.seconds)) for _, one in kernels if one.law == "decode"}
        assert least < slowest / cache < most, engine


def test_a_device_has_the_kernels_of_a_known_engine_only():
    with pytest.raises(InputError, match=r"engine of device h100_sxm.*tensorrt_llm"):
        replace(H100, engine="tensorrt")


def test_a_fit_finds_the_constants_that_made_the_data():
    law, rng = TRAINED["allreduce"], np.random.default_rng(0)
    work = {"devices": rng.choice([2.0, 4, 8], 200), "bytes": 2.0 ** rng.integers(8, 30, 200), "warm": True}
    true = {"launch": 6e-6, "peer": 4e-7, "once": 0.4, "round": 9e-6, "ring": 0.8}
    seconds = law.parts(true, H100, work).seconds
    found = fitted(lambda c: np.log(law.parts(c, H100, work).seconds / seconds), law.constants, {})
    assert found == pytest.approx(true, rel=0.02)


def test_a_fit_hardly_follows_an_outlier():
    [c] = [c for c in TRANSFER.constants if c.name == "share"]
    values = np.array([0.5] * 9 + [0.01])
    assert fitted(lambda k: np.log(k["share"] / values), [c], {})["share"] == pytest.approx(0.5, rel=0.02)


def test_a_format_without_units_is_stored_and_multiplied_in_16_bits():
    a100 = DEVICES["a100_80gb"]
    assert multiplied(a100, "fp8").units == "bf16" and multiplied(H100, "fp8").units == "fp8"
    assert product(1, 8192, 8192, a100, "fp8").seconds < product(1, 8192, 8192, a100).seconds
    assert "not measured" in product(1, 64, 64, H100, "int8").derived
    assert product(1, 64, 64, H100).derived == ""
    assert "what NVIDIA devices share" in product(1, 64, 64, DEVICES["l40s"]).derived
    assert "those of h100_sxm" in product(1, 64, 64, DEVICES["h200_sxm"]).derived


def test_what_a_device_lacks_is_refused_and_never_guessed(kernels):
    with pytest.raises(InputError, match=r"device bare has no multiprocessors .* add it to the device's YAML"):
        seconds_of(kernels, BARE)
    without = replace(H100, l2_bytes=None)
    with pytest.raises(InputError, match="device h100_sxm has no l2_bytes"):
        seconds_of(kernels, without)
    with pytest.raises(InputError, match="unknown format of products on device bare 'fp8'"):
        BARE.peak("fp8")
    with pytest.raises(InputError, match=r"peaks.fp8 must be a number above 0"):
        replace(BARE, peaks={"fp8": -1})
    with pytest.raises(InputError, match="unknown format of the peaks of device bare 'fp7'"):
        replace(BARE, peaks={"fp7": 1.0})
    with pytest.raises(InputError, match="unknown law of time 'produkt'"):
        seconds_of_work("produkt", "bf16", {}, H100)


def test_a_whole_stage_is_a_bound_and_no_kernel():
    layer = mm.GatedMLP(d=64, f=128)
    with pytest.raises(InputError, match="is a bound, not one that runs"):
        seconds_of(layer.program(runtime="compulsory").kernels(b=1, s=4), H100)


def test_a_users_device_is_one_file(tmp_path, kernels):
    text = Path("configs/device/l40s.yaml").read_text().replace("NVIDIA L40S", "Mine")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    [mine] = load_devices([str(path)])
    assert [e.seconds for e in seconds_of(kernels, mine)] == [e.seconds for e in seconds_of(kernels, DEVICES["l40s"])]


def test_every_law_has_all_its_constants_within_their_bounds():
    for law in TRAINED.values():
        found = shipped()["laws"][law.name]
        assert found["constants"].keys() == {c.name for c in law.constants}
        for c in law.constants:
            assert c.low * 0.999 <= found["constants"][c.name] <= c.high * 1.001, (law.name, c.name)
        for rows in found["spread"].values():
            assert all(0 < low < high for low, high in rows)
    for law in LAWS.values():
        assert law.what and constants_of(law, H100, "bf16").constants is not None


def test_the_sample_is_predicted_as_the_page_says():
    pytest.importorskip("pyarrow")
    groups = read(SAMPLE, DEVICES)
    assert sum(map(len, groups)) == 740
    for name in ("product", "mixture", "prefill", "decode", "vision", "allreduce"):
        law, errors = TRAINED[name], []
        for g in (g for g in groups if g.law == name and g.device.architecture != "Xe2"):
            errors.append(np.abs(np.expm1(residuals(law, constants_of(law, g.device, g.variant).constants, g))))
        assert np.median(np.concatenate(errors)) < 0.12, name


def test_many_products_in_one_call_take_a_small_part_of_what_each_by_itself_does():
    rng = np.random.default_rng(0)

    def seconds(many):
        work = product_work(H100, "bf16", *(2.0 ** rng.integers(4, 15, many) for _ in range(3)))
        start = time.process_time()
        seconds_of_work("product", "bf16", work, H100)
        return time.process_time() - start

    assert seconds(60_000) < 60_000 * np.median([seconds(1) for _ in range(20)]) / 30


def test_the_score_refuses_what_is_none(tmp_path, capsys):
    assert cli.main(["score", "kernels", str(tmp_path)]) == 2
    assert "holds none of the measured kernels: gemm.parquet" in capsys.readouterr().err
    assert cli.main(["score", "models", str(tmp_path)]) == 2
    assert "give `kernels FOLDER`, one FILE.csv or nothing" in capsys.readouterr().err


def test_devices_that_no_constant_was_fitted_on_are_scored_by_those_that_ship(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(SAMPLE / "gemm.parquet")
    names = {"h100_sxm": "h200_sxm", "a100_sxm": "tpu_v9"}
    column = pyarrow.array([names.get(name, name) for name in table["device"].to_pylist()])
    parquet.write_table(
        table.set_column(table.column_names.index("device"), "device", column), tmp_path / "gemm.parquet"
    )
    with pytest.raises(InputError, match="no device of the catalogue is called so"):
        read(tmp_path, DEVICES)
    assert cli.main(["score", "kernels", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("- product on devices that no constant was fitted on (h200_sxm): median ")
    assert "| product | bf16 | h200_sxm |" in text and "those of h100_sxm, of its architecture" in text
    assert "- gemm.parquet, tpu_v9, bf16: " in text
    told = list(unseen(read(tmp_path, DEVICES, [])))
    assert all(0 <= one.inside <= 1 and one.score.device == "h200_sxm" for one in told) and told
    errors = np.abs(np.expm1(np.concatenate([one.score.errors for one in told])))
    assert np.median(errors) < 0.15  # the H100's rows by the H100's constants, at the H200's bandwidth


def test_long_caches_are_split_and_short_ones_are_not():
    t = np.array([64.0, 131072])
    work = attention_work(H100, "decode", "bf16", 1, 8, 8, 128, 1, t)
    alone, all_heads = seconds_of_work("decode", "bf16", work, H100).seconds, 2 * 131072 * 8 * 128 * 2
    assert alone[1] < 3 * all_heads / H100.memory_bytes_per_s
    assert alone[0] < 2e-5


def test_the_score_is_written_below_its_mark(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "allreduce.parquet").write_bytes((SAMPLE / "allreduce.parquet").read_bytes())
    page = tmp_path / "page.md"
    page.write_text(f"# Above\n\n{MARK}\nold\n")
    assert cli.main(["score", "kernels", str(tmp_path), f"--out={page}"]) == 0
    text = page.read_text()
    assert text.startswith("# Above") and "old" not in text
    assert "## Devices left out" in text and "| allreduce | graph | h100_sxm |" in text
    page.write_text("no mark")
    assert cli.main(["score", "kernels", str(tmp_path), f"--out={page}"]) == 2


def test_activations_that_kernels_before_quantise_need_no_kernel_of_their_own():
    model, [device] = load_model("llama_3_1_8b"), load_devices(["h100_sxm"])

    def products(weights):
        work = model.text(2048, runtime="vllm", precision={"weights": weights})
        kernels = model.kernels("prefill", work)
        found = zip(kernels, seconds_of(kernels, device), strict=True)
        return sum(float(kernel.runs) * float(one.seconds) for kernel, one in found if one.law == "product")

    assert products("fp8_tensor") < products("fp8_channel") < products("bf16")
