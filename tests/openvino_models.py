"""Models that OpenVINO is asked about, small ones, and what we say of them."""

from collections import Counter

from modelmeter import layers as mm
from modelmeter.models.config_json import model_of
from modelmeter.runtimes.openvino import primitives
from modelmeter.runtimes.runtime import Runtime

COMMON = dict(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, hidden_act="silu",
)  # fmt: skip
NEOX = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
DECODERS = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama, tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama, a KV head each": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama, wide": {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 8192, "tie_word_embeddings": False},
    "llama, odd columns": {"model_type": "llama", "hidden_size": 320, "intermediate_size": 420, "tie_word_embeddings": False},
    "llama, columns of 32": {"model_type": "llama", "hidden_size": 352, "intermediate_size": 288, "head_dim": 88, "tie_word_embeddings": False},
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
    "granite": {"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.015625, "logits_scaling": 8.0, "tie_word_embeddings": True},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 256, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False},
    # Held back until these had been looked at.
    "phi": {"model_type": "phi", "hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "qk_layernorm": False, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0], "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True},
}  # fmt: skip


REASONS = {
    "phi3": "StridedSlice: two a layer, as Phi-3's code cuts off the part of each head that is rotated, which is all of it",
    "gpt_neox": "Transpose: two a layer less, as the matrix has q, k and v of a head side by side, turned round as one",
    "olmo2": "Eltwise: the mask stays one of booleans, which attention reads as they are",
}
"""Differences that are known, and why."""
CLIP = mm.PatchTower(mm.VitModel(
    mm.CLIPVisionEmbeddings(mm.PatchEmbed(3, 128, 16, bias=False), n=17, own_patches=True), mm.LayerNorm(128),
    mm.Transformer(mm.ResidualBlock(mm.SelfAttention(128, 4, 32), mm.MLP(128, 256, activation="quick_gelu"), mm.LayerNorm(128)), 2),
))  # fmt: skip
SIGLIP = mm.Transformer(
    mm.ResidualBlock(mm.SelfAttention(128, 4, 32), mm.MLP(128, 256, activation="gelu_pytorch_tanh"), mm.LayerNorm(128)),
    2,
)
TOWERS = {"CLIP": (CLIP, {"b": 1, "u": 4, "v": 4}), "SigLIP's encoder": (SIGLIP, {"b": 1, "s": 16})}
"""Towers of which transformers' modules are made in openvino_engine.py, and sizes to count them at."""


def config(name):
    """The fields of the config.json of a decoder."""
    own = DECODERS[name]
    return {**(NEOX if own["model_type"] == "gpt_neox" else COMMON), **own}


def made(name):
    """The model of a decoder."""
    return model_of(config(name))


def weights(name, policy):
    """Bytes of a decoder's weights, norms and biases in 32 bits."""
    work = made(name).text(5, precision={"weights": policy, "activations": "fp32", "kv": "fp32"})
    return made(name).cost("prefill", work).weight_bytes


def cached(name, runtime, kv):
    """Bytes of the cache in a step of one token after eight."""
    model = made(name)
    work = model.text(
        8, decode_steps=1, runtime=runtime, precision={"weights": "fp32", "activations": "fp32", "kv": kv}
    )
    return model.cost("decode", work).kv_cache_bytes


def launched(layer, runtime):
    """The primitives of a model's decoder, or of a layer, by type."""
    graph = layer.graph() if isinstance(layer, mm.BaseLayer) else _decoder(layer)
    return Counter({kind: int(many) for kind, many in primitives(Runtime.of(runtime).lowered(graph)).items()})


def _decoder(model):
    stage = model.stage("prefill")
    return model.changed(stage.layer_of(stage.whole).graph())
