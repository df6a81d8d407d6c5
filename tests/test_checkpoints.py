"""Safetensors of transformers' own modules beside our models: fused and stacked names, towers by name and shape, dtypes.

Decoders are small and stored with random weights; models with a tower are as large as released, their files sparse.
"""

import json
import os
import struct

import pytest

import modelmeter
from modelmeter import cli
from modelmeter.checkpoints.called import towers
from modelmeter.checkpoints.inspect import compare, comparison_text, model_in, read_header
from modelmeter.models.config_json import model_of

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

SMALL = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
ROUTED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
DECODERS = {
    "qwen3_moe": ROUTED | {"head_dim": 16},
    "qwen2_moe": ROUTED | {"shared_expert_intermediate_size": 48},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "deepseek_v3": LATENT,
    "phi3": {"sliding_window": None, "partial_rotary_factor": 1.0},
    "glm4": {"head_dim": 16, "attention_bias": True},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "glm4_moe": {"head_dim": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "attention_bias": True, "use_qk_norm": True, "n_group": 1, "topk_group": 1},
    "olmo2": {}, "smollm3": {}, "starcoder2": {"use_bias": True, "sliding_window": None},
}  # fmt: skip


def saved(folder, name, parts=1, dtype=None):
    """The file of a small random decoder with its config.json beside it, or the index of its parts."""
    config = {**SMALL, **DECODERS[name], "model_type": name}
    if name == "qwen2_moe":
        config |= {"norm_topk_prob": False}
    module = hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**config)).to(dtype or torch.bfloat16)
    tensors = {name: t.contiguous() for name, t in module.state_dict().items()}
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        safetensors.save_file(tensors, folder / "model.safetensors")
        return folder / "model.safetensors"
    where = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        safetensors.save_file({n: t for n, t in tensors.items() if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / "model.safetensors.index.json"


@pytest.mark.parametrize("name", DECODERS)
def test_fused_and_stacked_tensors_are_those_of_the_model(name, tmp_path):
    header = read_header(str(saved(tmp_path, name)))
    model = model_in(header)
    assert compare(header, model) == []
    stored = sum(t.elements for t in header.tensors.values() if "correction_bias" not in t.name)
    assert stored == model.storage().parameters
    fewer = model_of(json.loads((tmp_path / "config.json").read_text()) | {"intermediate_size": 80})
    assert {d.kind for d in compare(header, fewer)} <= {"shape"}


@pytest.mark.parametrize("name", ["qwen3_moe", "phi3"])
def test_shards_of_fused_tensors_are_one_file(name, tmp_path):
    header = read_header(str(saved(tmp_path, name, 3)))
    assert compare(header, model_in(header)) == []


def test_tensors_typed_otherwise_are_named(tmp_path, capsys):
    path = saved(tmp_path, "phi3")
    fields = json.loads((tmp_path / "config.json").read_text())
    assert "typed otherwise" not in comparison_text(read_header(str(path)), model_of(fields))
    tensors = safetensors.load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    safetensors.save_file(tensors, path)
    header = read_header(str(path))
    assert compare(header, model_of(fields)) == []
    assert "typed otherwise than bf16, which most is: 1\n  model.norm.weight  fp32" in comparison_text(
        header, model_of(fields)
    )
    (found,) = compare(header, model_of(fields | {"torch_dtype": "bfloat16"}))
    assert found == ("format", "model.norm.weight", "bf16", "fp32")
    (tmp_path / "config.json").write_text(json.dumps(fields | {"dtype": "float32"}))
    assert cli.main(["inspect", str(path)]) == 1
    assert "format" in capsys.readouterr().out


# Towers


def text_config(decoder):
    """The numbers of a decoder as a text_config."""
    layer = decoder.layers[0].layer
    return {
        "vocab_size": decoder.embedding.V, "hidden_size": decoder.d, "intermediate_size": layer.mlp.f,
        "num_hidden_layers": sum(kind.l for kind in decoder.layers), "num_key_value_heads": layer.attention.g,
        "num_attention_heads": layer.attention.g * layer.attention.r, "head_dim": layer.attention.e,
        "tie_word_embeddings": decoder.tied, "pad_token_id": 0,
    }  # fmt: skip


MODELS = {
    "qwen2_vl_7b": ("Qwen2VL", {"vision_config": {"hidden_size": 3584}}),
    "qwen2_5_vl_7b": ("Qwen2_5_VL", {"vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420}}),
    "paddleocr_vl": ("PaddleOCRVL", {}),
    "internvl2_8b": ("InternVL", {"vision_config": {"attention_bias": True, "image_size": [448, 448]}}),
    "glm_ocr": ("GlmOcr", {}),
    "got_ocr2": ("GotOcr2", {}),
}  # fmt: skip
"""Classes of transformers and what released files have otherwise than these assume."""


def sparse(path, name, dtype="BF16"):
    """The file of a model as large as released, without its data."""
    kind, fields = MODELS[name]
    decoder = modelmeter.load_model(name).decoder
    with torch.device("meta"):
        text = text_config(decoder) | ({"model_type": "llama"} if name == "internvl2_8b" else {})
        config = getattr(hf, f"{kind}Config")(**fields, text_config=text, tie_word_embeddings=decoder.tied)
        module = getattr(hf, f"{kind}ForConditionalGeneration")(config)
    header, at = {}, 0
    for tensor, value in module.state_dict().items():
        if not (decoder.tied and tensor.startswith("lm_head")):
            header[tensor] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [at, at + 2 * value.numel()]}
            at += 2 * value.numel()
    told = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(told)) + told)
    os.truncate(path, 8 + len(told) + at)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_towers_are_compared_by_name_and_shape(name, tmp_path):
    model = modelmeter.load_model(name)
    header = read_header(str(sparse(tmp_path / f"{name}.safetensors", name)))
    assert towers(header, model)
    assert compare(header, model) == []
    assert "beside the decoder" not in comparison_text(header, model)
