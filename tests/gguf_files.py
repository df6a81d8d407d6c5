"""GGUF files of small models, written with the package gguf from what transformers has, by that package's own names."""

import gguf
import numpy as np

SMALL = {
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
ERNIE = {**SMALL, "model_type": "ernie4_5", "head_dim": 64, "use_bias": False}
CONFIGS = {
    "ernie_tied": {**ERNIE, "tie_word_embeddings": True},
    "ernie": {**ERNIE, "tie_word_embeddings": False},
    "llama": {**SMALL, "model_type": "llama", "tie_word_embeddings": False},
    "llama_odd": {**SMALL, "model_type": "llama", "tie_word_embeddings": True, "hidden_size": 288, "intermediate_size": 544, "num_attention_heads": 9, "num_key_value_heads": 9},
    "qwen2": {**SMALL, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**SMALL, "model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
    "gemma": {**SMALL, "model_type": "gemma", "head_dim": 32},
    "gemma2": {**SMALL, "model_type": "gemma2", "head_dim": 32, "sliding_window": 16},
    "gemma3": {**SMALL, "model_type": "gemma3_text", "head_dim": 32, "sliding_window": 16},
}  # fmt: skip
ONES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OTHERS = {
    "phi3": {**SMALL, **ONES, "tie_word_embeddings": False, "partial_rotary_factor": 1.0, "sliding_window": None},
    "glm4": {**SMALL, **ONES, "head_dim": 32, "attention_bias": True, "tie_word_embeddings": False},
    "olmo2": {**SMALL, "tie_word_embeddings": False},
    "starcoder2": {**SMALL, "tie_word_embeddings": True, "use_bias": True, "sliding_window": None},
    "smollm3": {**SMALL, **ONES, "tie_word_embeddings": True},
    "granite": {**SMALL, "tie_word_embeddings": True},
    "gpt_neox": {**SMALL, **ONES, "tie_word_embeddings": False, "rotary_pct": 0.25},
    "phi": {**SMALL, **ONES, "tie_word_embeddings": False, "partial_rotary_factor": 0.5},
    "cohere": {**SMALL, **ONES, "tie_word_embeddings": True, "use_qk_norm": False},
}  # fmt: skip
"""Further types: biases, other norms, q, k and v in one matrix, gate and up in one."""
LARGE = {
    f"{name}_80": CONFIGS[name] | {"num_hidden_layers": 80, "intermediate_size": 256} for name in ("llama", "qwen2")
}
"""As many layers as a 70B has."""
EPSILON = {"attention.layer_norm_epsilon": 1e-5}
SCALES = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
EXTRA = {
    "phi": EPSILON, "starcoder2": EPSILON, "cohere": EPSILON | {"logit_scale": 1.0}, "glm4": {"rope.dimension_count": 16},
    "gpt_neox": EPSILON | {"use_parallel_residual": True, "rope.dimension_count": 8},
    "granite": dict.fromkeys(SCALES, 1.0) | {"rope.dimension_count": 32},
}  # fmt: skip
"""What llama.cpp also reads of a type."""
del OTHERS["gpt_neox"]["num_key_value_heads"]
ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "gpt_neox": "gptneox",
    "phi": "phi2",
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "qwen3_moe": "qwen3moe",
    "qwen2_moe": "qwen2moe",
    "gpt_oss": "gpt-oss",
}
MIXTURE = {
    "family": "deepseek", "hidden": 256, "heads": 4, "kv_heads": 4, "dense_mlp": 320, "dense_layers": 1, "moe_layers": 9,
    "experts": 8, "active": 2, "expert_mlp": 896, "shared_mlp": 1792, "gate_up": "split", "rotary": "model",
    "vocabulary": 320, "positions": 128, "tied": False,
}  # fmt: skip
MIXTURES = {
    "mixture": MIXTURE,
    "mixture_16": MIXTURE | {"experts": 16, "expert_mlp": 96, "shared_mlp": 192, "kv_heads": 2},
}
"""Decoders as DeepSeek-OCR's: experts of as many columns, of which 8 have rules of their own; and 16, heads shared."""


def module(config):
    """The causal model of transformers, on the meta device, with these fields."""
    import torch
    import transformers as hf

    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**config))


def tensors(config):
    """(name, shape with the columns first) of each tensor that a converter writes of a model of transformers."""
    architecture = ARCHITECTURES.get(config["model_type"], config["model_type"])
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    model = module(config)
    for name, tensor in model.state_dict().items():
        if not (model.config.tie_word_embeddings and name.startswith("lm_head")):
            yield names.get_name(name, (".weight", ".bias")), tuple(reversed(tensor.shape))


def mixture_tensors(m=MIXTURE):
    """The same of a mixture as DeepSeek-OCR's, whose code transformers has not: by the names of the package gguf."""
    d, t = m["hidden"], gguf.MODEL_TENSOR
    keys = d * m["kv_heads"] // m["heads"]
    name = lambda tensor, i=0: f"{gguf.TENSOR_NAMES[tensor].format(bid=i)}.weight"
    yield from (
        (name(t.TOKEN_EMBD), (d, m["vocabulary"])),
        (name(t.OUTPUT_NORM), (d,)),
        (name(t.OUTPUT), (d, m["vocabulary"])),
    )
    for i in range(m["dense_layers"] + m["moe_layers"]):
        yield from ((name(kind, i), (d, d)) for kind in (t.ATTN_Q, t.ATTN_OUT))
        yield from ((name(kind, i), (d, keys)) for kind in (t.ATTN_K, t.ATTN_V))
        yield from ((name(kind, i), (d,)) for kind in (t.ATTN_NORM, t.FFN_NORM))
        if i < m["dense_layers"]:
            yield from _gated(name, (t.FFN_GATE, t.FFN_UP, t.FFN_DOWN), i, d, m["dense_mlp"])
            continue
        yield name(t.FFN_GATE_INP, i), (d, m["experts"])
        yield from _gated(name, (t.FFN_GATE_EXP, t.FFN_UP_EXP, t.FFN_DOWN_EXP), i, d, m["expert_mlp"], m["experts"])
        yield from _gated(name, (t.FFN_GATE_SHEXP, t.FFN_UP_SHEXP, t.FFN_DOWN_SHEXP), i, d, m["shared_mlp"])


def _gated(name, kinds, i, d, f, *experts):
    for kind, shape in zip(kinds, ((d, f), (d, f), (f, d)), strict=True):
        yield name(kind, i), (*shape, *experts)


def metadata(config):
    """What llama.cpp reads of a model before its tensors."""
    if config.get("family") == "deepseek":
        a = "deepseek2-ocr"
        found = {
            "block_count": config["dense_layers"] + config["moe_layers"], "embedding_length": config["hidden"],
            "attention.head_count": config["heads"], "attention.head_count_kv": config["kv_heads"],
            "feed_forward_length": config["dense_mlp"], "leading_dense_block_count": config["dense_layers"],
            "expert_count": config["experts"], "expert_used_count": config["active"], "expert_shared_count": 2,
            "expert_feed_forward_length": config["expert_mlp"], "context_length": config["positions"],
            "vocab_size": config["vocabulary"], "expert_weights_scale": 1.0, "expert_gating_func": 1,
        }  # fmt: skip
    else:
        a = ARCHITECTURES.get(config["model_type"], config["model_type"])
        heads = config["num_attention_heads"]
        found = {
            "block_count": config["num_hidden_layers"], "embedding_length": config["hidden_size"],
            "feed_forward_length": config["intermediate_size"], "attention.head_count": heads,
            "attention.head_count_kv": config.get("num_key_value_heads", heads), "context_length": 128,
            "vocab_size": config["vocab_size"], "attention.key_length": config.get("head_dim", config["hidden_size"] // heads),
        }  # fmt: skip
        found |= {"attention.sliding_window": config["sliding_window"]} if config.get("sliding_window") else {}
        found |= EXTRA.get(config["model_type"], {})
        if config.get("num_experts"):
            found |= {
                "expert_count": config["num_experts"], "expert_used_count": config["num_experts_per_tok"],
                "expert_feed_forward_length": config["moe_intermediate_size"],
            }  # fmt: skip
        if config.get("num_local_experts"):
            found |= {
                "expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"],
                "expert_feed_forward_length": config["intermediate_size"],
            }  # fmt: skip
        if config.get("shared_expert_intermediate_size"):
            found |= {"expert_shared_feed_forward_length": config["shared_expert_intermediate_size"]}
        if config.get("kv_lora_rank"):
            found |= _latent(config)
    found["attention.layer_norm_rms_epsilon"] = 1e-5
    return a, {f"{a}.{key}": value for key, value in found.items()}


def _latent(config):
    """What a file of multi-head latent attention and its experts says: keys and values as the cache has them."""
    latent, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    more = {"attention.q_lora_rank": config["q_lora_rank"]} if config["q_lora_rank"] else {}
    if config["n_group"] > 1:
        more |= {"expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"]}
    return more | {
        "attention.kv_lora_rank": latent, "attention.key_length": latent + turned, "attention.value_length": latent,
        "attention.key_length_mla": config["qk_nope_head_dim"] + turned, "rope.dimension_count": turned,
        "attention.value_length_mla": config["v_head_dim"], "attention.head_count_kv": 1,
        "leading_dense_block_count": config["first_k_dense_replace"], "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"], "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"], "expert_weights_scale": 1.0,
        "expert_gating_func": 2 if config["model_type"] == "deepseek_v3" else 1,
        "expert_weights_norm": config["model_type"] == "deepseek_v3",
    }  # fmt: skip


def formats(given):
    """The format that a converter gives each tensor of a file in 16 bits."""
    narrow = ("_norm.weight", ".bias", "ffn_gate_inp.weight")
    for name, shape in given:
        yield name, shape, "F32" if len(shape) < 2 or name.endswith(narrow) else "F16"


def write(path, config, given, file_type=1, more=(), most=0):
    """A file of these (name, shape, format), all zeros; in parts of at most so many bytes of tensors."""
    architecture, pairs = metadata(config)
    writer = gguf.GGUFWriter(path, architecture, split_max_size=most)
    for key, value in {**pairs, "general.file_type": file_type, **dict(more)}.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](key, value)
    for name, shape, form in given:
        kind = gguf.GGMLQuantizationType[form]
        if form in ("F16", "F32"):
            writer.add_tensor(name, np.zeros(tuple(reversed(shape)), {"F16": np.float16, "F32": np.float32}[form]))
        else:
            writer.add_tensor(
                name, np.zeros(gguf.quant_shape_to_byte_shape(tuple(reversed(shape)), kind), np.uint8), raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
