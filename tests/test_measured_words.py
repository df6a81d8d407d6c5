"""What collections of measurements call things: broad lists of plausible words, each read as what it means or refused."""

from itertools import islice, product

import pytest

from modelmeter.catalogue import load_devices, load_host
from modelmeter.config import load_model
from modelmeter.errors import InputError
from modelmeter.measured.predict import predicted
from modelmeter.measured.rows import COLUMNS, names, question
from modelmeter.times import Times

BASE = dict.fromkeys((*COLUMNS, "note"), "") | {
    "category": "LLM", "model": "Llama-3.1-8B", "quant": "BF16", "engine": "vLLM 0.9", "hardware": "H100 SXM", "n_gpu": "",
    "batch_or_conc": "1", "input_tok": "1024", "output_tok": "128", "metric": "tpot", "value": "1", "unit": "ms",
}  # fmt: skip
LLAMA_CPP = {
    "engine": "llama.cpp",
    "quant": "Q4_K_M",
    "model": "Llama-3-70B",
    "unit": "tok/s",
    "metric": "decode_tok_s",
}
PAGE = {"category": "DSOCR", "model": "DeepSeek-OCR", "input_tok": "", "metric": "e2e_s", "unit": "s"}


def asked(**changes):
    return question(BASE | changes, names()["devices"])


def read(of, **changes):
    """An attribute of a question, or "" where it is refused."""
    try:
        return getattr(asked(**changes), of)
    except InputError:
        return ""


MODELS = {
    "deepseek_ocr": "deepseek-ai/DeepSeek-OCR|DeepSeek OCR (3B)", "deepseek_ocr2": "DeepSeek-OCR-2|DeepSeek-OCR v2|DeepSeek-OCR 2",
    "paddleocr_vl": "PaddleOCR-VL-0.9B|PaddleOCR VL", "mineru2_5": "MinerU2.5-2509-1.2B|MinerU 2.5", "got_ocr2": "GOT-OCR 2.0",
    "glm_ocr": "GLM-OCR 0.9B", "dots_ocr": "dots.ocr 3B|rednote-hilab/dots.ocr", "qwen2_5_vl_3b": "Qwen2.5-VL-3B-Instruct|Nanonets-OCR-s|OCRFlux-3B", "qwen2_vl_2b": "Qwen2-VL-2B",
    "qwen2_5_vl_7b": "olmOCR-2-7B-1025-FP8|Qwen2.5-VL-7B", "qwen2_vl_7b": "olmOCR-7B-0225|Qwen2-VL-7B", "internvl3_8b": "InternVL3-8B",
    "gpt_j_6b": "GPT-J-6B|EleutherAI/gpt-j-6b", "falcon_180b": "Falcon 180B", "llama_2_70b": "LLaMA-70B|LLaMA-v2-70B|Llama 2 70B",
    "llama_2_7b": "LLaMA-7B|llama-2-7b-chat|Llama v2 7B", "llama_3_8b": "llama3:8b|Meta-Llama-3-8B-Instruct",
    "llama_3_1_8b": "llama3.1:8b|Shisa V2 8B|DeepSeek-R1-Distill-Llama-8B", "llama_3_1_70b": "Llama 3.3 70B Instruct|Llama-3-70B",
    "qwen3_30b_a3b": "Qwen 3 30B-A3B|qwen3moe 30B.A3B|Qwen3 Coder 30B A3B", "qwen3_8b": "DeepSeek-R1-0528-Qwen3-8B|Qwen3 8B",
    "qwen2_5_72b": "Qwen2.5-72B|Qwen2-72B", "qwen2_0_5b": "Qwen2.5-0.5B", "qwen1_5_7b": "qwen-7b-chat|Qwen1.5-7B",
    "deepseek_v3": "DeepSeek R1 0528|DeepSeek-V3.1", "deepseek_v2_lite": "DeepSeek-Coder-V2-Lite", "gemma_2b": "gemma-2b-it",
    "gemma_2_2b": "gemma-2-2b-it|Gemma 2 2B", "gemma_2_9b": "gemma2:9b", "gemma_3_4b": "Gemma 3 4B|gemma-3-4b-it-qat",
    "phi_3_mini": "phi-3-mini-4k-instruct", "phi_3_5_mini": "phi-3-mini-128k|phi-3.5-mini", "phi_4_mini": "Phi-4-mini", "phi_4": "phi-4",
    "phi_mini_moe": "Phi-mini-MoE", "glm_4_9b_chat": "glm-4-9b-chat", "chatglm3_6b": "chatglm3-6b", "stablelm_3b": "stable-zephyr-3b-dpo",
    "mistral_7b": "zephyr-7b-beta|Mistral 7B v0.1", "mistral_small_24b": "Mistral Small 3.1 24B", "redpajama_3b": "red-pajama-incite-chat-3b-v1",
    "": "dots.ocr-1.5|DeepSeek-V3.2|phi-4-multimodal|Llama-4-Maverick|Qwen3-VL-8B|Qwen3-Next-80B-A3B|InternVL3-2B|GLM-4.5|Gemma 3n E4B|Llama-3.2-11B-Vision|command-r-08-2024|Nemotron-Ultra-253B|Mistral-Large-3-675B",
}  # fmt: skip
DEVICES = {
    "a100_40gb_pcie": "A100-PCIE-40GB|A100 40GB PCIe", "a100_40gb": "NVIDIA A100-SXM4-40GB", "a100_80gb": "A800 80G|2xA100-80GB",
    "a100_80gb_pcie": "A100 PCIe", "h100_sxm": "H100 80GB HBM3|8xH100|DGX H100", "h100_nvl": "H100 NVL", "h200_nvl": "H200 NVL",
    "gh200_96gb": "GH200|GH200 480GB", "gh200_144gb": "GH200 144GB", "gb200": "GB200 NVL72", "b200_sxm": "HGX B200", "l40": "NVIDIA L40",
    "l40s": "L40S 48GB", "rtx_3080": "RTX 3080 10GB", "rtx_3080_ti": "RTX 3080 Ti", "rtx_4070_ti": "RTX 4070 Ti 12GB",
    "rtx_4090": "4090|2x RTX 4090|RTX 4090 48G", "rtx_a6000": "8x RTX A6000 48GB", "rtx_6000_ada": "RTX 6000 Ada Generation",
    "rtx_pro_6000_server": "RTX PRO 6000|RTX 6000 Pro", "rtx_pro_6000_workstation": "RTX PRO 6000 Blackwell Workstation", "gb10": "DGX Spark",
    "apple_m1": "M1 7-core", "apple_m1_max": "M1 Max 32-Core GPU 64GB", "apple_m2_ultra": "Apple M2 Ultra (76c)", "xeon_6980p": "Xeon 6980P",
    "radeon_8060s": "Framework Desktop (Strix Halo)", "arc_155h": "Core Ultra 7 155H (iGPU)", "max_1550": "Max 1550",
    "": "RTX 3070 Ti|RTX 3080 12GB|RTX 4090D|RTX 4090 Laptop GPU|RTX 3060 Mobile|RTX 5090 D|MI300A|H20-3e|Core Ultra 7 258V (NPU)|Core Ultra 7 155H CPU|Data Center GPU Max 1100|RTX 2080",
}  # fmt: skip
ENGINES = {
    "vllm": "TensorRT LLM 1.0|SGLang (CUDA graphs)|FastDeploy 2.0|NVIDIA NIM|Dynamo + vLLM|LMDeploy TurboMind", "eager": "PyTorch eager|transformers (eager)",
    "sdpa": "HF transformers|PaddlePaddle|transformers FA2", "compile": "torch.compile|gpt-fast|mlx-lm", "openvino_stateful": "OVMS|OpenVINO GenAI 2024.5",
    "": "vLLM + EAGLE3|SGLang (MTP)|vLLM speculative|vLLM PD disaggregated (1P1D)|vLLM TP4 PP2|ktransformers|vLLM CPU|PyTorch CUDA graphs|ds_ocr (pure C, BLAS/Accelerate)",
}  # fmt: skip
FORMATS = {
    ("vLLM", "int8_g128"): "int8 weight-only|W8A16|GPTQ-Int8", ("vLLM", "int8_channel"): "W8A8|INT8|SmoothQuant", ("vLLM", "nvfp4"): "FP4|NVFP4",
    ("vLLM", "bf16"): "|none|BF16 + FP8 KV", ("vLLM", ""): "W4AFP8|W4A8|1.58bit|EXL2 5.0bpw|BF16/FP8",
    ("llama-bench", "q8_0"): "UD-Q8_K_XL|Q8|Q8_0", ("Ollama", "q6_k"): "UD-Q6_K_XL|Q6_K", ("llama.cpp", "q4_k_m"): "UD-Q4_K_XL|Q4_K|i1-Q4_K_M",
}  # fmt: skip
METRICS = {
    ("tpot", "ms"): "latency_per_token|2nd_token_latency|tbt_ms|decode_step_ms|ms_tok", ("ttft", "ms"): "1st_token_ms|prefill_time|ftl",
    ("busy_decode", "ms"): "gpu_busy_ms_per_tok|decode_gpu_busy_ms|gpu_ms_per_token", ("busy_prefill", "ms"): "prefill_gpu_busy_ms|prefill_gpu_ms",
    ("vision", "ms"): "encoder_latency|vit_ms|encode_ms|vision_encode_ms", ("pages", "s"): "s_per_page|sec_per_image|latency_s_per_page",
    ("e2e", "s"): "inference_s|total_time_s|page_latency_s|wall_s", ("prefill_tokens", "tok/s"): "pp512|pp2048@d4096|prefill_throughput|prompt_eval_tok_s",
    ("decode_tokens", "tok/s"): "tg128|throughput|output_token_throughput|tokens_per_second|eval_rate|decode_throughput", ("requests", "req/s"): "qps|req_throughput|throughput",
    ("all_tokens", "tok/s"): "total_throughput|total_token_throughput", ("prompt_tokens", "tok/s"): "input_throughput|input_tok_s",
    ("pages", "img/s"): "img_s|throughput", ("memory", "GiB"): "peak_gpu_mem|vram_gib", ("decode_tokens", "tok/day"): "tokens_per_day",
    ("", "GB"): "weights_gb|kv_cache_gb|model_size_gb", ("", "ms"): "gpu_time_ms|kernel_time|queue_ms",
}  # fmt: skip


def spelled(table):
    return [(meant, text) for meant, texts in table.items() for text in texts.split("|")]


@pytest.mark.parametrize(("model", "text"), spelled(MODELS))
def test_a_model_is_no_other_one(model, text):
    assert read("model", model=text) == model


@pytest.mark.parametrize(("device", "text"), spelled(DEVICES))
def test_a_device_is_no_other_one(device, text):
    assert read("device", hardware=text) == device


@pytest.mark.parametrize(("runtime", "text"), spelled(ENGINES))
def test_an_engine_runs_as_it_does_or_is_refused(runtime, text):
    assert read("runtime", engine=text) == runtime


@pytest.mark.parametrize(("known", "text"), spelled(FORMATS))
def test_a_format_has_its_bits(known, text):
    found = read("precision", engine=known[0], quant=text)
    assert (found["weights"] if found else "") == known[1]


@pytest.mark.parametrize(("known", "text"), spelled(METRICS))
def test_a_metric_is_what_it_measures(known, text):
    assert read("quantity", metric=text, unit=known[1], category="OCR", image_mode="1 page") == known[0]


def test_a_kv_cache_in_8_bits_is_told_from_weights():
    assert (
        asked(quant="BF16 + FP8 KV").precision
        == asked(quant="BF16 (KV FP8)").precision
        == {"weights": "bf16", "kv": "fp8"}
    )
    assert "weights in 16 bits" in asked(quant="").assumed


def test_several_devices_are_counted_and_nothing_else_is():
    for engine, hardware in (("vLLM 0.9", "Xeon 6980P"), ("llama.cpp", "M1 Max 24 cores"), ("vLLM", "MI300X 192GB")):
        assert read("devices", engine=engine, hardware=hardware, quant="BF16") == 1, hardware
    for hardware in ("4x H100", "H100 x4", "H100 (4 GPUs)", "4*H100"):
        assert read("devices", hardware=hardware) == 4
    with pytest.raises(InputError, match="the number of devices is told twice: 1, 8"):
        asked(hardware="8x H100", n_gpu="1")


def test_llama_cpp_gives_each_device_a_part_of_the_layers():
    """A token goes through all of them: no faster than one; chunks of a prompt follow each other: two take 3 / 4."""
    for engine, split in (("llama.cpp", (1, 2)), ("vLLM", (2, 1)), ("transformers", (1, 2)), ("vLLM TP2", (2, 1))):
        found = asked(engine=engine, quant="BF16", hardware="2x RTX 4090", n_gpu="2")
        assert (found.devices, found.layered) == split, engine
    one, two = (LLAMA_CPP | {"hardware": f"{n}x RTX 4090", "n_gpu": n} for n in "12")
    assert predicted(asked(**one)) == predicted(asked(**two))
    prompt = {"metric": "prefill_tok_s", "input_tok": "1024", "output_tok": "0"}
    single, pair = (predicted(asked(**own | prompt)) for own in (one, two))
    assert pair.seconds == pytest.approx(single.seconds * 4 / 3) and pair.low == pytest.approx(single.low)
    with pytest.raises(InputError, match="many users of layers"):
        predicted(asked(**two | {"batch_or_conc": "8"}))


def test_a_prompt_behind_others_and_a_token_behind_them():
    depths = [
        predicted(asked(**LLAMA_CPP | {"model": "Llama-3-8B", "input_tok": f"0{at}"})).seconds
        for at in ("", " @ d16384")
    ]
    assert asked(input_tok="tg32 @ d4096", output_tok="32").prompt_tokens == 4096 + 32
    chunk = {**LLAMA_CPP, "model": "Llama-3-8B", "metric": "prefill_tok_s", "output_tok": "0"}
    for text in ("2048 @ d16384", "2048 (depth 16k)", "pp2048 @ d16384"):
        found = asked(**chunk | {"input_tok": text})
        assert (found.prompt_tokens, found.depth) == (2048, 16384)
    alone, behind = predicted(asked(**chunk | {"input_tok": "2048"})), predicted(found)
    assert depths[0] > depths[1] and alone.seconds > behind.seconds > alone.seconds / 10


def test_an_image_is_cut_as_its_mode_says():
    modes = {"tiny": "Tiny 512|tiny (64 tok)", "small": "small|1 view 640", "base": "Base 1024x1024|1794x1578 -> 1 view 1024|no crop",
             "large": "Large 1280", "gundam_m": "Gundam-M|gundam master", None: "gundam|dynamic|global+4 crops @768|1080p"}  # fmt: skip
    assert [read("mode", **PAGE, image_mode=text) for _, text in spelled(modes)] == [mode for mode, _ in spelled(modes)]
    times = [
        predicted(asked(**PAGE | {"image_mode": mode, "metric": "vision_ms"})).seconds
        for mode in ("tiny", "base", "gundam")
    ]
    assert times == sorted(times) and times[0] < times[1] / 2
    with pytest.raises(InputError, match="unknown mode 'tiny'; valid: base, dynamic"):
        predicted(asked(**PAGE | {"model": "DeepSeek-OCR-2", "image_mode": "tiny"}))


def test_sizes_of_pages_however_they_are_told():
    sizes = {
        "200 dpi": "1654x2338",
        "150 DPI A4": "1240x1754",
        "longest side 1288": "911x1288",
        "1 MP": "841x1189",
        "1024²": "1024x1024",
    }
    assert {text: read("image_size", **PAGE, image_mode=text) for text in sizes} == sizes
    assert [read("page", **PAGE, image_mode=text) for text in ("receipt", "newspaper", "1 page")] == [
        "receipt",
        "newspaper",
        "a4_200dpi",
    ]
    for text in ("2x 1024x1024", "10-page PDF", "video 32 frames", "table crop", "448x448 x12 tiles"):
        with pytest.raises(InputError, match="are not told"):
            asked(**PAGE | {"image_mode": text})
    assert asked(**PAGE | {"image_mode": "text only", "input_tok": "100"}).prompt_tokens == 100
    assert asked(input_tok="1k-4k").image_size is None
    with pytest.raises(InputError, match="llama_3_1_8b is the part of a model that reads text"):
        predicted(asked(image_mode="1024x1024"))


def test_a_page_without_an_answer_is_not_one_of_two_tokens():
    assert asked(**PAGE | {"output_tok": "", "image_mode": "OmniDocBench"}).decode_steps == 900
    assert (
        asked(**PAGE | {"output_tok": "", "image_mode": "1080p", "metric": "tok_s", "unit": "tok/s"}).decode_steps
        == 900
    )


def test_a_run_of_many_requests_has_no_time_of_one():
    with pytest.raises(InputError, match="total_time_s of many requests is not told"):
        asked(**PAGE | {"metric": "total_time_s", "batch_or_conc": "offline"})


def test_device_time_is_that_of_its_kernels():
    found = asked(**PAGE | {"engine": "transformers (eager)", "metric": "gpu_busy_ms_per_tok", "unit": "ms"})
    model = load_model("deepseek_ocr")
    work = model.workload(image_size="1654x2339", prompt_tokens=16, decode_steps=128, runtime="eager")
    times = Times(model, work, load_devices(["h100_sxm"])[0], load_host())
    assert predicted(found).seconds == times.stages["decode"].device.seconds < times.tpot.seconds


ROWS = (  # category, model, quant, engine, hardware, load, input, output, image, (metric, unit)
    ("DSOCR", "DeepSeek-OCR|DeepSeek-OCR-2", "BF16", "transformers (eager)|vLLM 0.8.5|SGLang", "A100-40G|RTX 5090|MI300X", "1|16|batch",
     "", "1000|", "base|gundam|1024x1024|PDF pages", "ttft_mean ms|tpot_mean ms|e2e_s s|out_tok_s tok/s|pages_day pages/day"),
    ("OCR", "PaddleOCR-VL-0.9B|MinerU2.5|GOT-OCR2.0|dots.ocr|HunyuanOCR|olmOCR-7B|Nanonets-OCR-s|Qwen2.5-VL-72B|InternVL3-8B", "BF16",
     "vLLM|FastDeploy|transformers", "A100 80G|RTX 4090|L20", "1|batch", "", "", "OmniDocBench 1.5|1 page", "pages_s pages/s|tok_s tok/s|s_per_page s|vram_gb GB"),
    ("LLM", "GPT-J-6B|LLaMA-7B|LLaMA-70B|Falcon-180B|Llama-4-Maverick|Qwen3-235B-A22B|DeepSeek-R1", "FP8|NVFP4", "TensorRT-LLM", "H100 SXM|B200|GH200|L40S",
     "1|max load|64", "128|2048", "128|2048", "", "total_out_tok_s tok/s|out_tok_s_per_gpu tok/s/GPU|ttft ms"),
    ("LLM", "Llama-3-8B|Llama-3-70B|gpt-oss-120B|Qwen3 Coder 30B A3B|Gemma 3 4B QAT|GLM 4.5 Air|Hunyuan-A13B", "Q4_K_M|Q8_0|UD-Q4_K_XL", "llama.cpp|llama.cpp Vulkan",
     "2x RTX 4090|RTX 4000 Ada|A40|Apple M2 Ultra (76c)|DGX Spark|Strix Halo", "1", "short|0 @ d4096|1024", "128", "", "decode_tok_s tok/s|prefill_tok_s tok/s"),
    ("LLM", "phi-3-mini-4k-instruct|gemma-7b-it|chatglm3-6b|baichuan2-7b|dolly-v2-3b|stable-zephyr-3b|opt-2.7b", "INT4-MIXED|INT8-CW|FP16", "OpenVINO GenAI",
     "Core Ultra 7 258V|Arc B580", "1", "1024", "", "", "ttft ms|tpot ms|rss_mb MB"),
    ("SERVE", "Llama-3.1-8B|Qwen3-32B|Phi-mini-MoE", "BF16|FP8", "vLLM 0.6.0|SGLang v0.2", "H100|RTX PRO 6000", "Poisson 10 req/s|QPS 4|inf|concurrency 32",
     "ShareGPT|random 1024", "ShareGPT|128", "", "ttft_mean ms|tpot_p99 ms|out_tok_s tok/s|req_s req/s|goodput req/s|itl_p99 ms"),
)  # fmt: skip


def test_most_plausible_rows_are_expressed():
    keys = (
        "category",
        "model",
        "quant",
        "engine",
        "hardware",
        "batch_or_conc",
        "input_tok",
        "output_tok",
        "image_mode",
    )
    shares = []
    for table in ROWS:
        rows = [*islice(product(*(column.split("|") for column in table)), 0, None, 7)]
        known = 0
        for *row, measured in rows:
            metric, unit = measured.split()
            known += bool(read("model", **dict(zip(keys, row, strict=True)), metric=metric, unit=unit))
        shares.append(known / len(rows))
    assert min(shares) > 0.6 and sum(shares) / len(shares) >= 0.85, shares


@pytest.mark.parametrize(
    ("quant", "weights"),
    [
        ("INT4", "openvino_int4"), ("INT4-MIXED", "openvino_int4"), ("INT4 AWQ", "openvino_int4"), ("AWQ-INT4", "openvino_int4"),
        ("INT4_ASYM", "openvino_int4"), ("INT4_SYM", "openvino_int4_sym"), ("INT4-CW", "openvino_int4_sym_channel"),
        ("INT8", "openvino_int8"), ("INT8-CW", "openvino_int8"), ("FP16", "bf16"), ("FP16, INT8 KV", "bf16"),
    ],
)  # fmt: skip
def test_graphs_of_openvino_have_the_formats_that_nncf_compresses_to(quant, weights):
    given = {"engine": "OpenVINO GenAI 2026.1", "hardware": "Arc 140V", "quant": quant}
    assert asked(**given).precision["weights"] == weights


def test_engines_whose_names_hold_others_are_themselves():
    known = {"OpenVINO GenAI (NoLlama)": "openvino_stateful", "Ollama Vulkan": "llama_cpp_vulkan",
             "llama.cpp SYCL": "llama_cpp_sycl",
             "Ollama of IPEX-LLM": "llama_cpp_sycl", "llama.cpp": "llama_cpp_vulkan"}  # fmt: skip
    for engine, runtime in known.items():
        quant = "INT4" if runtime.startswith("openvino") else "Q4_0"
        assert asked(engine=engine, quant=quant, hardware="Arc B580", model="Llama-3-8B").runtime == runtime


def test_llama_cpp_absorbs_latents():
    given = {
        "engine": "llama.cpp",
        "quant": "Q4_0",
        "model": "DeepSeek-V2-Lite",
        "hardware": "RTX 3090",
        "metric": "decode_tok_s",
    }
    found = predicted(asked(**given, unit="tok/s"))
    assert found.low < found.seconds < found.high
