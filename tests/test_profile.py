"""A profiler's record beside the prediction: real modules on the CPU, what lacks, what is more, what is none of ours."""

import json
import sqlite3
from functools import partial

import pytest

import modelmeter
from modelmeter.catalogue import load_devices, load_host
from modelmeter.cli import main
from modelmeter.errors import InputError
from modelmeter.models.config_json import model_of
from modelmeter.profiled import chrome
from modelmeter.profiled.align import matched
from modelmeter.profiled.beside import laid
from modelmeter.profiled.expected import program_of
from modelmeter.profiled.read import read
from modelmeter.profiled.recorded import Ran, Range, Recorded
from modelmeter.times import Times

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from profiled_subjects import modules_of, recorded, shares  # noqa: E402
from torch_subjects import SHALLOW, cache_of, deepseek_ocr, tower  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

HOST = load_host()
TOKENS, STEPS = 128, 3
FIELDS = {
    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False, "hidden_act": "silu",
    "sliding_window": None, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def times(model, device="xeon_8480", **options):
    work = model.workload(**options) if model.planner else model.text(**options)
    return Times(model, work, load_devices([device])[0], HOST)


def decoder(kind, attention, **changes):
    """A decoder with random weights, our model of it, and what runs a prefill and steps of decode."""
    fields = FIELDS | {"model_type": kind} | changes
    made = CONFIG_MAPPING[kind](**{key: value for key, value in fields.items() if key != "model_type"})
    made._attn_implementation = attention
    module = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).eval()
    width = getattr(made, "head_dim", None) or fields["hidden_size"] // fields["num_attention_heads"]

    def call(tokens, past):
        ids, positions = torch.zeros(1, tokens, dtype=torch.long), torch.arange(past, past + tokens)[None]
        return lambda: (ids, positions, cache_of(made, 1, fields["num_key_value_heads"], past, width))

    def run(ids, positions, cache):
        module(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)

    calls = [("prefill", call(TOKENS, 0)), *(("decode", call(1, TOKENS + step)) for step in range(STEPS))]
    runs = [(stage, make, run) for stage, make in calls]
    ours = times(
        model_of(fields | {"head_dim": width} if kind == "qwen3" else fields, kind),
        tokens=TOKENS,
        decode_steps=STEPS,
        runtime=attention,
    )
    return module, ours, runs


@pytest.mark.parametrize("shapes", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_time_of_a_decoder_is_that_of_the_right_ops(tmp_path, kind, attention, shapes):
    """Every kernel that is laid is the right one; only masks, which the model itself makes, are left over."""
    module, ours, runs = decoder(kind, attention)
    least = []
    for _ in range(3):  # another process may take the core while a mask is made
        trace, found = read(recorded(tmp_path / "trace.json", runs, module, shapes)), []
        for stage, ranges in trace.stages.items():
            program, parts = program_of(ours, stage), list(trace.within(ranges))
            ran, names = [one for part in parts for one in part.ran], [n for part in parts for n in modules_of(part)]
            places, passes = matched(ran, program)
            assert passes == len(ranges) == (1 if stage == "prefill" else STEPS)
            right, laid_at_all = shares(ran, places, names, program.kernels)
            assert right == laid_at_all
            assert {name for place, name in zip(places, names, strict=True) if place < 0} <= {"model"}
            found.append(right)
        least.append(min(found))
        if least[-1] > 0.95:
            break
    assert max(least) > (0.95 if attention == "eager" else 0.9999)


def test_nothing_is_left_of_a_decoder_with_attention_as_one_kernel(tmp_path):
    """Without masks, which are constants of the shape, each operator has its kernel and runs as often as expected."""
    module, ours, runs = decoder("llama", "sdpa")
    found, _ = laid(read(recorded(tmp_path / "trace.json.gz", runs, module)), ours)
    assert [one.stage for one in found] == ["prefill", "decode"]
    for one in found:
        assert one.alone == () and all(pair.times == pair.expected.runs for pair in one.pairs)
        assert one.matched == pytest.approx(1.0)
        assert sum(pair.seconds for pair in one.pairs) == pytest.approx(one.busy, rel=1e-5)
        assert 0 < one.idle < one.wall


def vision(name, size, attention):
    model = modelmeter.load_model(name, SHALLOW)
    return tower(name, attention), times(model, image_size=size, runtime=attention), "vision"


def mixture(attention):
    """The decoder of DeepSeek-OCR, small, on embeddings, as transformers has it."""
    small = {
        "hidden": 48, "heads": 6, "kv_heads": 6, "dense_mlp": 72, "dense_layers": 1, "moe_layers": 2, "experts": 4,
        "active": 4, "expert_mlp": 24, "shared_mlp": 48, "vocabulary": 50, "positions": 512, "gate_up": "merged",
        "rotary": "model",
    }  # fmt: skip
    model = modelmeter.load_model("deepseek_ocr", [f"decoder.{key}={value}" for key, value in small.items()])
    work = model.text(256, batch=2, runtime=attention)
    return deepseek_ocr(attention, 2, 256, 0), Times(model, work, load_devices(["xeon_8480"])[0], HOST), "prefill"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "make",
    [partial(vision, "minimind2_v", "224x224"), partial(vision, "qwen2_vl_7b", "140x84"), mixture],
    ids=["CLIP", "the tower of Qwen2-VL", "the decoder of DeepSeek-OCR"],
)
def test_the_time_of_towers_and_mixtures_is_that_of_the_right_ops(tmp_path, make, attention):
    subject, ours, stage = make(attention)
    runs, program, found = [(stage, subject.make, subject.run)], program_of(ours, stage), []
    for _ in range(3):
        trace = read(recorded(tmp_path / "trace.json", runs, subject.module))
        [part] = trace.within(trace.stages[stage])
        places, passes = matched(part.ran, program)
        right, laid_at_all = shares(part.ran, places, modules_of(part), program.kernels)
        assert passes == 1 and laid_at_all - right < 3e-3
        found.append(right)
    assert max(found) > 0.95


def changed(path, change):
    """A trace with other events."""
    data = json.loads(path.read_text())
    data["traceEvents"] = change(data["traceEvents"])
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A prefill and steps of decode of a small llama, in one file with shapes and in one without and without ranges."""
    module, ours, runs = decoder("llama", "sdpa")
    folder = tmp_path_factory.mktemp("plain")
    shaped = recorded(folder / "shapes.json", runs, module, named=False)
    steps = recorded(folder / "steps.json", [("", *run[1:]) for run in runs[1:]], module, shapes=False, named=False)
    return ours, shaped, steps


def test_steps_without_ranges_are_counted_by_their_kernels(plain):
    ours, _, steps = plain
    with pytest.raises(InputError, match="no range of this trace is called prefill or decode: give stage="):
        laid(read(steps), ours)
    [one], told = laid(read(steps), ours, "decode")
    assert one.passes == STEPS and one.matched > 0.999 and "all of it is taken for decode" in told[0]


def test_an_operator_more_has_no_counterpart_and_one_less_lacks(plain, tmp_path):
    ours, shaped, _ = plain
    trace = tmp_path / "more.json"
    trace.write_text(shaped.read_text())
    before = {one.stage: one for one in laid(read(trace), ours)[0]}

    def change(events):
        products = [e for e in events if e["name"] == "aten::mm"]
        products[10]["name"], products[20]["name"] = "aten::silu", "aten::view"
        return events

    found = {one.stage: one for one in laid(read(changed(trace, change)), ours)[0]}["prefill"]
    lacking = {pair.expected.what: pair.lacking for pair in found.pairs if pair.lacking}
    assert [(one.name, one.times) for one in found.alone] == [("aten::silu", 1)]
    assert lacking == {"y[b s d] = o[b s g r e] * W_o[g r e d]": 1, "y[b s d] = _h[b s f] * W_down[f d]": 1}
    taken = before["prefill"].total - found.total
    assert found.matched < 1 and 0 < taken < before["prefill"].total / 10


def test_layers_more_than_expected_are_surplus(plain, tmp_path):
    _, shaped, _ = plain
    _, ours, _ = decoder("llama", "sdpa", num_hidden_layers=3)
    found = {one.stage: one for one in laid(read(shaped), ours)[0]}
    for one in found.values():
        assert {pair.times - pair.expected.runs for pair in one.pairs if ".layers" in pair.expected.path} == {1}
        assert 0.7 < one.matched < 0.9


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"hidden_size": 512}, "has no counterpart in prefill and decode of llama under sdpa: it is of another model"),
        ({}, "products of prefill have 128 rows where the request has 100"),
    ],
)
def test_a_trace_of_something_else_is_refused(plain, changes, told):
    _, shaped, _ = plain
    _, ours, _ = decoder("llama", "sdpa", **changes)
    other = ours if changes else times(ours.model, tokens=100, decode_steps=3, runtime="sdpa")
    with pytest.raises(InputError) as error:
        laid(read(shaped), other, "prefill" if not changes else None)
    assert told in str(error.value)


NAMES = {
    "product": "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
    "attention": "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4>>(Flash_fwd_params)",
    "compute": "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<MulFunctor<float>>>",
    "copy": "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(TensorIteratorBase&)>",
    "lookup": "void at::native::vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long)",
}
"""Names that kernels of these kinds have on NVIDIA devices."""
LATER, FASTER = 50.0, 0.01
"""Microseconds after its launch that a made-up kernel starts at the earliest; how long it runs, of its operator."""


def launched(path):
    """Made-up kernels of the operators of a trace: (operator, launched at, start, duration), one after the other."""
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("cat") == "cpu_op"]
    [operators] = (list(chrome._operators(found)) for found in chrome._threads(events).values())
    over, found = 0.0, []
    for one in operators:
        start = max(over, one.start + LATER)
        found.append((one, one.start, start, (one.end - one.start) * FASTER))
        over = start + found[-1][-1]
    return found


def test_kernels_of_a_gpu_are_laid_by_the_operators_that_launched_them(plain, tmp_path):
    """A trace with kernels as Kineto writes them, made up here: runtime calls that share a correlation with kernels."""
    ours, shaped, _ = plain
    trace = tmp_path / "gpu.json"
    trace.write_text(shaped.read_text())

    def change(events):
        thread = next((e["pid"], e["tid"]) for e in events if e.get("cat") == "cpu_op")
        for number, (one, called, start, lasts) in enumerate(launched(shaped)):
            both = {"ph": "X", "args": {"correlation": number}}
            events.append(
                {
                    **both,
                    "cat": "cuda_runtime",
                    "name": "cudaLaunchKernel",
                    "ts": called,
                    "dur": 0.1,
                    "pid": thread[0],
                    "tid": thread[1],
                }
            )
            events.append(
                {**both, "cat": "kernel", "name": NAMES[one.kind], "ts": start, "dur": lasts, "pid": 0, "tid": 7}
            )
        first = min(e["ts"] for e in events if e.get("cat") == "user_annotation")
        copied = {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "pid": 0, "tid": 7}
        return [*events, {**copied, "ts": first + 1, "dur": 3.0, "args": {}}]

    recorded = read(changed(trace, change))
    found = {one.stage: one for one in laid(recorded, ours)[0]}
    assert recorded.on_gpu and recorded.has_sizes
    assert [one.name for one in found["prefill"].alone] == ["Memcpy HtoD (Pageable -> Device)"] and found[
        "decode"
    ].alone == ()
    on_cpu = {one.stage: one for one in laid(read(shaped), ours)[0]}
    for stage, one in found.items():
        assert all(pair.times == pair.expected.runs for pair in one.pairs)
        mine, theirs = (sum(pair.seconds for pair in f[stage].pairs) for f in (found, on_cpu))
        assert mine == pytest.approx(theirs * FASTER) and one.idle > 0


def test_kernels_of_a_captured_graph_are_no_operators(tmp_path):
    """All of them share the correlation of the one call that launched the graph, as CUPTI tells it."""
    host, gpu = {"ph": "X", "pid": 9, "tid": 9}, {"ph": "X", "pid": 0, "tid": 7, "cat": "kernel", "dur": 2.0}
    args = {"device": 0, "correlation": 5, "graph id": 2}
    events = [
        {**host, "cat": "user_annotation", "name": "decode", "ts": 0.0, "dur": 100.0},
        {**host, "cat": "cpu_op", "name": "aten::mm", "ts": 1.0, "dur": 9.0, "args": {"Input Dims": [[1, 8], [8, 4]]}},
        {**host, "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 2.0, "dur": 1.0, "args": {"correlation": 5}},
        *({**gpu, "name": name, "ts": 20.0 + 3 * i, "args": {**args, "graph node id": i}} for i, name in enumerate(NAMES.values())),
    ]  # fmt: skip
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"traceEvents": events}))
    recorded = read(path)
    assert [(one.name, one.kind, one.sizes) for one in recorded.ran] == [
        (name, kind, ()) for kind, name in NAMES.items()
    ]
    [step] = recorded.within(recorded.stages["decode"])
    assert len(step.ran) == len(NAMES)


def test_what_was_launched_in_a_range_is_told_in_the_order_that_it_ran():
    ran = tuple(Ran(name, "copy", (), start, 0.1, launched) for name, start, launched in
                (("b", 1.0, 0.5), ("a", 2.0, 0.2), ("d", 3.0, 1.5), ("c", 4.0, 1.0)))  # fmt: skip
    found = Recorded(ran, (), "a test", True).within([Range("one", 0.2, 1.0), Range("two", 1.0, 2.0)])
    assert [[one.name for one in part.ran] for part in found] == [["b", "a"], ["d", "c"]]


def sqlite_of(path, kernels, ranges):
    """An export as Nsight Systems documents it, made up here."""
    base = sqlite3.connect(path)
    columns = "start INT, end INT, deviceId INT, contextId INT, streamId INT, correlationId INT, demangledName INT, shortName INT"
    base.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL)")
    base.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL ({columns})")
    base.execute(
        "CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INT, end INT, globalTid INT, correlationId INT, nameId INT)"
    )
    base.execute("CREATE TABLE NVTX_EVENTS (start INT, end INT, eventType INT, text TEXT, textId INT, globalTid INT)")
    names = {kind: number for number, kind in enumerate(NAMES)}
    base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(number, NAMES[kind]) for kind, number in names.items()])
    base.execute("INSERT INTO StringIds VALUES (99, 'decode')")
    for number, (one, called, start, lasts) in enumerate(kernels):
        at = [round(value * 1000) for value in (called, start, start + lasts)]
        own = (*at[1:], 0, 1, 7, number, names[one.kind], names[one.kind])
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?, ?, ?, ?, ?)", own)
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 1, ?, 0)", (at[0], at[0] + 5, number))
    for name, start, end in ranges:
        told = (None, 99) if name == "decode" else (name, None)
        base.execute(
            "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, ?, 1)", (round(start * 1000), round(end * 1000), *told)
        )
    base.commit()
    base.close()
    return path


def test_an_export_of_nsight_systems_is_laid_by_names_and_order(plain, tmp_path):
    ours, shaped, _ = plain
    ranges = [(r.name, r.start * 1e6, r.end * 1e6) for r in read(shaped).ranges]
    kernels = launched(shaped)
    found, _ = laid(read(sqlite_of(tmp_path / "made.sqlite", kernels, ranges)), ours)
    assert [(one.stage, one.passes) for one in found] == [("prefill", 1), ("decode", STEPS)]
    for one in found:
        assert one.alone == () and all(pair.times == pair.expected.runs for pair in one.pairs)

    head = "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Device,Ctx,Strm,Name"
    decode = [k for k in kernels if any(s <= k[1] < e for name, s, e in ranges if name == "decode")]
    rows = [
        f'{start * 1000:.0f},{lasts * 1000:.0f},1,1,1,1,1,1,1,H100 (0),1,7,"{NAMES[one.kind]}"'
        for one, _, start, lasts in decode
    ]
    table = tmp_path / "trace.csv"
    table.write_text("\n".join([" ** CUDA GPU Trace (cuda_gpu_trace):", "", head, *rows]))
    [again], _ = laid(read(table), ours, "decode")
    assert again.passes == STEPS and again.matched == pytest.approx(1.0)
    assert again.busy == pytest.approx(found[1].busy, rel=1e-3)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.json", b"", "is empty; export it again"),
        ("a.json", b'{"traceEvents": [', "is not whole JSON; export it again"),
        ("a.json", b'{"model_type": "llama"}', "is no trace of torch.profiler: it has no list of traceEvents"),
        ("a.json", b'{"traceEvents": []}', "has no operators and no kernels: record it with torch.profiler.profile("),
        ("a.json.gz", b"\x1f\x8b\x00", "is not whole JSON; export it again"),
        ("a.csv", b"image,seconds\n1,2\n", "is no trace that is known here: give Chrome JSON of torch.profiler"),
        ("a.csv", b"Start (ns),Duration (ns),Name\n1,x,gemm\n", "Start (ns) and Duration (ns) must be numbers in '1,x,gemm'"),
        ("a.csv", b"Start (ns),Duration (ns),Name\n", "has no kernels of a GPU; record with nsys profile"),
        ("a.nsys-rep", b"\x01\x02", "is Nsight Systems' own format: export it with nsys export --type sqlite"),
        ("a.sqlite", b"SQLite format 3\x00broken", "cannot be read as an export of Nsight Systems"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_the_command_answers_first_and_writes_what_it_found(plain, tmp_path, capsys):
    _, shaped, steps = plain
    config = tmp_path / "config.json"
    config.write_text(json.dumps(FIELDS | {"model_type": "llama"}))
    given = [f"model={config}", "device=xeon_8480", "runtime=sdpa", f"prompt_tokens={TOKENS}", f"decode_steps={STEPS}"]
    assert main(["profile", str(shaped), *given, f"out={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("prefill of ") and " measured, " in lines[0] and lines[3].startswith("decode of ")
    assert (
        "100.0 % of the busy time has a counterpart" in lines[1]
        and "most to gain: " in lines[2]
        and "passes: prefill 1, decode 3" in "".join(lines)
    )
    table = (tmp_path / "out" / "profile.csv").read_text().splitlines()
    assert table[0].startswith("stage,path,what,kind,runs,expected_runs,measured_s,predicted_s") and len(table) > 100
    assert {"profile.svg", "profile.csv"} == {path.name for path in (tmp_path / "out").iterdir()}
    for wrong, told in (
        ([str(shaped)], "give the trace first, then the model that it is of"),
        ([str(steps), *given], "no range of this trace is called prefill or decode"),
        ([str(shaped), *given, "stage=vision"], "unknown stage 'vision'"),
        ([str(tmp_path / "none.json"), *given], "cannot be read: No such file"),
        ([str(shaped), *given, "device=h100"], "unknown device 'h100'"),
    ):
        assert main(["profile", *wrong]) == 2
        assert told in capsys.readouterr().err
    assert main(["profile", "--help"]) == 0 and "stage=null" in capsys.readouterr().out
