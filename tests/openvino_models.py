"""Models that OpenVINO is asked about: small ones with the sizes of a config.json, every tensor random."""

COMMON = dict(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, hidden_act="silu",
)  # fmt: skip
NEOX = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
DECODERS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, a KV head each": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": False},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, "tie_word_embeddings": False},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False},
    "phi3": {"model_type": "phi3", "pad_token_id": 0, "sliding_window": None, "partial_rotary_factor": 1.0, "tie_word_embeddings": False},
    "gpt_neox": {"model_type": "gpt_neox", "hidden_act": "gelu", "rotary_pct": 0.25, "use_parallel_residual": True, "attention_bias": True, "tie_word_embeddings": False},
    # Held back until the passes were written.
    "mistral": {"model_type": "mistral", "head_dim": 64, "sliding_window": None, "tie_word_embeddings": False},
    "olmo2": {"model_type": "olmo2", "tie_word_embeddings": False},
    "starcoder2": {"model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": None, "tie_word_embeddings": True},
    "stablelm": {"model_type": "stablelm", "partial_rotary_factor": 0.25, "use_qkv_bias": True, "tie_word_embeddings": False},
    "granite": {"model_type": "granite", "tie_word_embeddings": True},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 256, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False},
}  # fmt: skip


def config(name):
    """The fields of the config.json of a decoder."""
    own = DECODERS[name]
    return {**(NEOX if own["model_type"] == "gpt_neox" else COMMON), **own}
