"""Decoders that llama.cpp is asked about, the files of these, and what is asked; `scripts/engines` asks it all."""

import gguf_files

from modelmeter.checkpoints.layout import layout_of
from modelmeter.models.config_json import model_of
from modelmeter.models.families import component
from modelmeter.models.vlm import text_model

WIDE = {**gguf_files.SMALL, "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
MIXTURE = {
    **gguf_files.MIXTURE,
    "moe_layers": 3,
    "dense_mlp": 512,
    "expert_mlp": 256,
    "shared_mlp": 512,
    "vocabulary": 512,
}
ERNIE = {**WIDE, "model_type": "ernie4_5", "use_bias": False, "tie_word_embeddings": True}
LATENT = {
    **WIDE, "num_key_value_heads": 8, "kv_lora_rank": 128, "q_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64,
    "v_head_dim": 64, "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "moe_intermediate_size": 256, "n_group": 1, "topk_group": 1, "tie_word_embeddings": False, "model_type": "deepseek_v3",
}  # fmt: skip
"""Latent attention. The engine takes a decoder of 27 layers alone for one whose queries have no latent."""
OTHERS = {
    name: {**gguf_files.OTHERS[name], **WIDE, "model_type": name}
    for name in ("olmo2", "starcoder2", "glm4", "phi3", "granite", "smollm3")
}
ROUTED = {
    **WIDE, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "norm_topk_prob": True,
    "tie_word_embeddings": False, "model_type": "qwen3_moe", "head_dim": 64,
}  # fmt: skip
GPT_OSS = {
    **WIDE, "model_type": "gpt_oss", "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64,
    "intermediate_size": 256, "attention_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3 = {**WIDE, "model_type": "gemma3_text"}
CONFIGS = {
    "llama": {**WIDE, "model_type": "llama", "tie_word_embeddings": False},
    "llama, tied": {**WIDE, "model_type": "llama", "tie_word_embeddings": True},
    "llama, 9 layers": {**WIDE, "model_type": "llama", "num_hidden_layers": 9, "intermediate_size": 1536},
    "llama, 1 layer": {**WIDE, "model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False},
    "qwen2": {**WIDE, "model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {**WIDE, "model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": False},
    "qwen3, heads of 192": {**WIDE, "model_type": "qwen3", "head_dim": 192, "tie_word_embeddings": False},
    "qwen3, heads of 256": {**WIDE, "model_type": "qwen3", "head_dim": 256, "tie_word_embeddings": False},
    "qwen3, heads of 96": {**WIDE, "model_type": "qwen3", "head_dim": 96, "tie_word_embeddings": False},
    "ernie4_5": {**ERNIE, "head_dim": 128},
    "ernie4_5, as the decoder of PaddleOCR-VL": {**ERNIE, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16, "head_dim": 128, "vocab_size": 103424},
    "gemma": {**WIDE, "model_type": "gemma", "head_dim": 64},
    "gemma2": {**WIDE, "model_type": "gemma2", "head_dim": 64, "sliding_window": 64},
    "gemma3": {**GEMMA3, "head_dim": 64, "sliding_window": 64, "num_hidden_layers": 7},
    "gemma3, 13 layers": {**GEMMA3, "head_dim": 96, "sliding_window": 300, "num_hidden_layers": 13},
    **OTHERS,
    "gpt_oss": GPT_OSS,
    "gpt_oss, 6 layers, 4 of 16 experts": {**GPT_OSS, "num_hidden_layers": 6, "num_local_experts": 16, "num_experts_per_tok": 4},
    "qwen3_moe": ROUTED,
    "qwen2_moe": {k: v for k, v in ROUTED.items() if k != "head_dim"} | {"model_type": "qwen2_moe", "norm_topk_prob": False, "shared_expert_intermediate_size": 512},
    "deepseek2, 27 layers, no latent of queries": {**LATENT, "model_type": "deepseek_v2", "topk_method": "greedy", "q_lora_rank": None, "num_hidden_layers": 27},
    "deepseek2": LATENT,
    "deepseek2, 2 of 4 groups": {**LATENT, "n_group": 4, "topk_group": 2, "qk_rope_head_dim": 64},
    "deepseek2-ocr, 2 of 8 experts": MIXTURE,
    "deepseek2-ocr, 6 of 16 experts": {**MIXTURE, "experts": 16, "active": 6},
}  # fmt: skip


def made(name):
    """The model."""
    config = CONFIGS[name]
    return text_model(name, component("decoder", config)) if "family" in config else model_of(config)


def write(folder, name, policy):
    """The file of a model under a policy, all zeros."""
    config, forms = CONFIGS[name], {"fp32": "F32", "fp16": "F16"}
    stored = layout_of(made(name), policy).tensors
    given = [(t.name, t.shape, forms.get(t.format.name, t.format.name.upper())) for t in stored]
    architecture, _ = gguf_files.metadata(config)
    more = {"tokenizer.ggml.model": "none", f"{architecture}.context_length": 8192}
    if "head_dim" in config:
        more |= {
            f"{architecture}.{key}": config["head_dim"] for key in ("attention.value_length", "rope.dimension_count")
        }
    if architecture == "granite":
        more[f"{architecture}.rope.dimension_count"] = config["hidden_size"] // config["num_attention_heads"]
    return gguf_files.write(folder / f"{name}.{policy}.gguf".replace(" ", "_"), config, given, more=more.items())


def asked(policy="f16", context=512, ubatch=512, **options):
    """A question: the policy, context and tokens at once, options of `buffers`."""
    return policy, context, ubatch, options


DECODERS = [(name, asked(flash=flash)) for name in CONFIGS if "PaddleOCR" not in name for flash in (True, False)]
SIZES = [
    ("llama", asked(context=context, ubatch=ubatch, flash=flash, **cache))
    for context, ubatch in ((100, 512), (300, 64), (1000, 512), (4096, 7))
    for flash, cache in ((True, {}), (False, {}), (False, {"keys": "q8_0"}), (True, {"keys": "q8_0", "values": "q8_0"}), (True, {"values": "q4_0"}))
]  # fmt: skip
ROTATED = [
    (name, asked(flash=True, keys="q8_0", values="q8_0"))
    for name in ("qwen3, heads of 96", "qwen3, heads of 192", "qwen3, heads of 256", "ernie4_5", "deepseek2-ocr, 2 of 8 experts", "qwen2", "smollm3", "qwen3_moe", "olmo2")
]  # fmt: skip
STORED = [
    ("llama, tied", asked(policy, mapped=mapped, repack=repack))
    for policy in ("q8_0", "q4_0", "q4_k_m", "q5_k_m", "iq4_nl", "q2_k")
    for mapped, repack in ((True, True), (False, True), (True, False), (False, False))
]
LARGE = [
    ("ernie4_5, as the decoder of PaddleOCR-VL", asked("q4_k_m", context=8192, flash=flash)) for flash in (True, False)
]
WINDOWS = [
    (name, asked(context=context, ubatch=ubatch, flash=flash, **cache))
    for name in ("gemma2", "gemma3", "gemma3, 13 layers", "gpt_oss")
    for context, ubatch, flash, cache in (
        (2048, 64, True, {}), (2048, 64, False, {}), (1000, 512, False, {}), (4096, 7, True, {}),
        (1000, 128, True, {"keys": "q8_0", "values": "q8_0"}), (1000, 128, False, {"keys": "q8_0"}),
    )
]  # fmt: skip
LATENTS = [
    (name, asked(context=context, ubatch=ubatch, flash=flash, **cache))
    for name in ("deepseek2", "deepseek2, 2 of 4 groups")
    for context, ubatch, flash, cache in (
        (300, 64, False, {}), (2000, 512, False, {}), (4096, 7, True, {}), (1000, 128, True, {"keys": "q8_0", "values": "q8_0"}),
    )
]  # fmt: skip
QUESTIONS = [*DECODERS, *SIZES, *ROTATED, *WINDOWS, *LATENTS, *STORED, *LARGE]


def words(options):
    """Options of `buffers` as the engine is given them."""
    others = {"keys": "k", "values": "v", "mapped": "mmap"}
    said = {True: "on", False: "off"}
    return {others.get(key, key): said.get(value, str(value).replace("fp", "f")) for key, value in options.items()}


def mib(size):
    """Bytes as the engine writes them."""
    return f"{size / 2**20:.2f}"


def caches(ours):
    """The caches of `buffers` as the engine's report has them."""
    return " + ".join(mib(size) for size in (ours.kv - ours.near, ours.near) if size)
