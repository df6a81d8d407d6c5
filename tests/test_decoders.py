"""Decoders of a config.json are transformers' modules: parameters, FLOPs, scalar operations, kernel and cache bytes."""

import json
from pathlib import Path

import pytest

import modelmeter
from modelmeter import cli
from modelmeter.config import as_it_stands
from modelmeter.errors import InputError
from modelmeter.folders import config_names
from modelmeter.models.config_json import _table, model_of, model_types

RELEASED = json.loads(Path(__file__).with_name("decoders.json").read_text())
SHORT = {"gemma3_text": 7, "smollm3": 5, "deepseek_v3": 4, "gpt_oss": 3, "gemma2": 3}
"""Layers that have all kinds of a type; 2 of the others."""
SMALL = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5,
    "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1, "num_key_value_heads": 6, **EXPERTS,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
VARIANTS = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 10},
    "mistral tied": {"model_type": "mistral", "sliding_window": 12, "tie_word_embeddings": True},
    "qwen2 with a window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 12,
                            "max_window_layers": 1},
    "qwen3 by layer": {"model_type": "qwen3", "head_dim": 6, "attention_bias": True, "use_sliding_window": True,
                       "sliding_window": 12, "max_window_layers": 3, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
    "qwen2_moe with dense layers": {"model_type": "qwen2_moe", "num_experts": 6, "shared_expert_intermediate_size": 9,
                                    "decoder_sparse_step": 2, "mlp_only_layers": [1], "norm_topk_prob": True,
                                    "qkv_bias": False, **EXPERTS},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 6, "head_dim": 6, "norm_topk_prob": True, **EXPERTS},
    "mixtral with a window": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 3,
                              "sliding_window": 12},
    "gemma": {"model_type": "gemma", "head_dim": 8, "attention_bias": True},
    "gemma2 without caps": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 12,
                            "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma3_text by pattern": {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 12,
                               "sliding_window_pattern": 3},
    "phi with norms": {"model_type": "phi", "qk_layernorm": True, "partial_rotary_factor": 0.5, "num_key_value_heads": 6},
    "glm": {"model_type": "glm", "head_dim": 8, "attention_bias": True},
    "stablelm with biases": {"model_type": "stablelm", "hidden_size": 48, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
    "phimoe": {"model_type": "phimoe", "num_local_experts": 6, "num_experts_per_tok": 2, "attention_bias": True,
               "lm_head_bias": True, "sliding_window": 12},
    "falcon": {"model_type": "falcon", "num_kv_heads": 2, "hidden_size": 48, "new_decoder_architecture": True,
               "parallel_attn": True, "alibi": False, "bias": False},
    "gptj": {"model_type": "gptj", "rotary_dim": 2, "n_inner": None, "activation_function": "gelu_new"},
    "phi3 in part": {"model_type": "phi3", "partial_rotary_factor": 0.5, "sliding_window": 12, "hidden_size": 48},
    "ernie4_5 with biases": {"model_type": "ernie4_5", "head_dim": 6, "use_bias": True, "tie_word_embeddings": False},
    "ernie4_5_moe every other layer": {"model_type": "ernie4_5_moe", "moe_num_experts": 6, "moe_k": 2, "use_bias": True,
                                       "moe_num_shared_experts": 1, "moe_layer_start_index": 1, "head_dim": 4,
                                       "moe_layer_end_index": 2, "moe_layer_interval": 2, "moe_intermediate_size": 8,
                                       "tie_word_embeddings": True},
    "ernie4_5_moe beyond its layers": {"model_type": "ernie4_5_moe", "moe_num_experts": 6, "moe_k": 2, "head_dim": 4,
                                       "moe_num_shared_experts": 0, "moe_layer_start_index": 0, "use_bias": False,
                                       "moe_layer_end_index": 4, "moe_intermediate_size": 8,
                                       "tie_word_embeddings": False},
    "deepseek_v2 greedy": {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1,
                           "topk_method": "greedy", "attention_bias": True},
    "deepseek_v2 in groups": {"model_type": "deepseek_v2", **LATENT, "n_group": 4, "topk_group": 2,
                              "topk_method": "group_limited_greedy"},
    "deepseek_v3 by halves": {"model_type": "deepseek_v3", **LATENT, "n_group": 2, "topk_group": 1,
                              "rope_interleave": False, "norm_topk_prob": False, "attention_bias": True},
    "gpt_oss without biases": {"model_type": "gpt_oss", "head_dim": 6, "num_local_experts": 4, "num_experts_per_tok": 2,
                               "sliding_window": 12, "attention_bias": False},
    "olmo2 with grouped heads": {"model_type": "olmo2", "attention_bias": True},
    "glm4": {"model_type": "glm4", "head_dim": 8, "attention_bias": False},
    "glm4_moe in groups": {"model_type": "glm4_moe", "head_dim": 8, "attention_bias": True, "use_qk_norm": True,
                           "partial_rotary_factor": 0.5, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 4,
                           "topk_group": 2, "first_k_dense_replace": 2, **EXPERTS},
    "glm_ocr_text in part": {"model_type": "glm_ocr_text", "head_dim": 8, "attention_bias": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5, "mrope_section": [0, 1, 1]}},
    "glm_ocr_text of whole heads": {"model_type": "glm_ocr_text", "head_dim": 8, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000, "mrope_section": [1, 2, 1]}, "tie_word_embeddings": True},
    "qwen2_vl_text with a window": {"model_type": "qwen2_vl_text", "use_sliding_window": True, "sliding_window": 12,
                                    "max_window_layers": 1, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}},
    "qwen2_5_vl_text": {"model_type": "qwen2_5_vl_text", "rope_scaling": {"type": "mrope", "mrope_section": [1, 0, 1]}},
    "paddleocr_vl_text with biases": {"model_type": "paddleocr_vl_text", "head_dim": 6, "use_bias": True, "rope_scaling": {
        "type": "default", "mrope_section": [1, 1, 1]}, "tie_word_embeddings": True},
    "granite with biases": {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    "smollm3 by layer": {"model_type": "smollm3", "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True,
                         "sliding_window": 12, "tie_word_embeddings": False},
    "starcoder2 without biases": {"model_type": "starcoder2", "use_bias": False, "sliding_window": 12},
    "cohere with norms": {"model_type": "cohere", "use_qk_norm": True},
    "gpt_neox one after the other": {"model_type": "gpt_neox", "rotary_pct": 0.5, "use_parallel_residual": False,
                                     "attention_bias": False},
    "qwen2 with heads of its own": {"model_type": "qwen2", "num_key_value_heads": None, "max_window_layers": 0,
                                    "use_sliding_window": True, "sliding_window": 12, "hidden_act": "swish"},
}  # fmt: skip


def fields_of(name):
    return RELEASED[name]["config"]


def short(fields):
    return fields | {"n_layer" if "n_layer" in fields else "num_hidden_layers": SHORT.get(fields["model_type"], 2)}


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_the_public_count_and_those_of_the_module(name, torch):
    from modelmeter.validate.decoders import module_of

    counted = model_of(fields_of(name), name).storage().parameters
    assert RELEASED[name]["parameters"] in (counted, None)
    with torch.device("meta"):  # what stores no parameter: the correction biases of routers, which are buffers
        assert sum(p.numel() for p in module_of(fields_of(name)).parameters()) == counted


def without_heads(fields):
    """GPT-NeoX, GPT-J and Falcon have no field of this name for KV heads, the latter two none for their MLP."""
    other = ("num_key_value_heads", "intermediate_size")
    without = {"gpt_neox": other[:1], "gptj": other, "falcon": other}
    return {k: v for k, v in fields.items() if k not in without.get(fields["model_type"], ())}


def same(fields, torch, last=4):
    """The last of the four calls: one sequence of 9 tokens and a step after it, two of 33 and a step after them."""
    from modelmeter.validate.case import compare
    from modelmeter.validate.decoders import layer_cases

    for case in list(layer_cases(model_of(fields, "small")))[-last:]:
        result = compare(case)
        assert result.equal, (case.layer, result.difference)


@pytest.mark.parametrize("name", RELEASED)
def test_released_decoders_work_as_their_modules_do(name, torch):
    """At full width, with the layers of every kind: the others are the same again; small ones are at more sizes."""
    same(short(fields_of(name)), torch, last=2)


@pytest.mark.parametrize("name", VARIANTS)
def test_other_configurations_of_each_type_work_as_their_modules_do(name, torch):
    same(without_heads(SMALL | VARIANTS[name]), torch)


def test_every_type_is_among_the_variants():
    assert {fields["model_type"] for fields in VARIANTS.values()} == set(model_types())


@pytest.mark.parametrize("name", [name for name, fields in VARIANTS.items() if fields.get("sliding_window")])
def test_the_cache_holds_what_transformers_holds_on_both_sides_of_a_windows_edge(name, torch):
    from modelmeter.validate.decoders import cache_of, cached_bytes, forward, module_of

    fields = SMALL | VARIANTS[name]
    model, window = model_of(fields, name), fields["sliding_window"]
    with torch.device("meta"), torch.no_grad():
        module = module_of(fields)
        for tokens in (window - 2, window - 1, window, window + 1, 3 * window):
            cache = cache_of(module)
            forward(module, 2, tokens, cache)
            assert model.cost("prefill", model.text(tokens, batch=2)).kv_cache_bytes == cached_bytes(cache)
            forward(module, 2, 1, cache)
            step = model.text(tokens, batch=2, decode_steps=1)
            assert model.cost("decode", step).kv_cache_bytes == cached_bytes(cache)


def test_every_field_of_transformers_is_read_silent_or_has_one_meaning(torch):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    table = _table()
    for kind, line in table["types"].items():
        known = {word for value in line.values() if isinstance(value, str) for word in words(value)}
        known |= {*table["silent"]["*"].split(), *table["silent"].get(kind, "").split(), "layer_types"}
        known |= {*table["only"]["*"], *table["only"].get(kind, {})}
        named = {**CONFIG_MAPPING[kind]().to_dict()}
        left = {name for name, value in named.items() if name not in known and not name.startswith("_")}
        assert not {name for name in left if named[name] not in (None, False, [], {}, "")}, kind


def words(value):
    return value[1:].partition("?")[0].split("|") if value.startswith("$") else []


@pytest.mark.parametrize("name", [n for n in config_names("model") if "config" in as_it_stands(n)["model"]])
def test_models_of_the_catalogue_have_their_public_count_and_nothing_is_assumed(name):
    said, model = as_it_stands(name)["model"], modelmeter.load_model(name)
    assert model.storage().parameters == said["parameters"] and model.notes == () and model.name == name


def test_latent_attention_expanded_and_absorbed():
    """A step of DeepSeek-V3 at 4,097 tokens: 8,477 GFLOP where keys and values are made again, 143 where not."""
    model = modelmeter.load_model("deepseek_v3")
    costs = [model.cost("decode", model.text(4096, decode_steps=1, latent=form)) for form in ("expanded", "absorbed")]
    assert [int(cost.tensor_core_flops / 1e9) for cost in costs] == [8477, 142]
    assert [round(cost.flops / 1e9) for cost in costs] == [8478, 143]
    assert [cost.basis.rpartition(", ")[2] for cost in costs] == ["latent expanded", "latent absorbed"]
    fields = ("kv_cache_bytes", "parameters", "weight_bytes")
    assert len({tuple(getattr(cost, name) for name in fields) for cost in costs}) == 1
    without = modelmeter.load_model("llama_3_8b")
    assert "latent" not in without.cost("prefill", without.text(10)).basis


def test_absorbed_products_are_the_same_in_code_that_is_written_out():
    model = modelmeter.load_model("deepseek_v2_lite")
    works = [model.text(50, decode_steps=2, latent="absorbed", runtime=runtime) for runtime in ("eager", "flash")]
    for stage in ("prefill", "decode"):
        eager, flash = (model.cost(stage, work) for work in works)
        assert eager.tensor_core_flops == flash.tensor_core_flops and eager.io_bytes > flash.io_bytes


def test_absorbing_changes_the_order_of_products_and_nothing_else():
    """A prompt of one token: both make the same scores, so the difference is that of the products alone."""
    h, e, o, c, T = 6, 6, 5, 8, 4
    layer = modelmeter.layers.LatentAttention(24, h, e, T, o, c)
    expanded, absorbed = (layer.cost(b=1, s=1, t=7, latent=form) for form in ("expanded", "absorbed"))
    keys = 2 * 7 * h * (c * (e + o) + (e + T) + o)  # made, scored, seen
    latents = 2 * h * (c * (e + o)) + 2 * 7 * h * ((c + T) + c)
    assert expanded.tensor_core_flops - absorbed.tensor_core_flops == keys - latents
    assert expanded.cuda_core_flops == absorbed.cuda_core_flops


def test_a_file_a_folder_and_the_catalogue_are_one_model(tmp_path):
    said = as_it_stands("qwen3_0_6b")["model"]["config"]
    folder = tmp_path / "Qwen3-0.6B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(said))
    catalogue = modelmeter.load_model("qwen3_0_6b")
    for name in (folder, folder / "config.json"):
        model = modelmeter.load_model(str(name))
        assert model.name == "Qwen3-0.6B"
        work = model.text(100, batch=3, decode_steps=20)
        assert model.costs(work) == catalogue.costs(work)


def test_fields_of_a_file_are_overridden_as_those_of_the_catalogue(tmp_path, capsys):
    said = as_it_stands("qwen3_0_6b")["model"]["config"]
    file = tmp_path / "qwen.json"
    file.write_text(json.dumps(said | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}))
    changes = ["model.config.num_hidden_layers=2", "model.config.rope_scaling.factor=4.0"]
    model, pinned = modelmeter.load_model(str(file), changes), modelmeter.load_model("qwen3_0_6b", changes[:1])
    work = model.text(100)
    assert model.costs(work) == pinned.costs(work)
    assert model.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    for change, sentence in (
        ("hidden_sizes=2", "hidden_sizes 2 is read by nothing"),
        ("num_key_value_heads=5", "not divisible"),
    ):
        assert cli.main(["cost", str(file), f"model.config.{change}"]) == 2
        assert sentence in capsys.readouterr().err


def test_what_a_file_leaves_out_and_the_type_says_is_told():
    given = {**SMALL, "model_type": "smollm3"}
    (note,) = model_of(given, "mine").notes
    assert "tie_word_embeddings true" in note and "no_rope_layer_interval 4" in note and "hidden_act silu" in note


LLAMA = {"model_type": "llama", **SMALL}
REFUSED = [
    ({**LLAMA, "model_type": "lama"}, "unknown model_type 'lama', did you mean 'llama'"),
    ({k: v for k, v in LLAMA.items() if k != "model_type"}, "model_type is missing; supported: cohere"),
    ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size is missing, which a llama has"),
    ({**SMALL, "model_type": "mistral"}, "sliding_window is missing, which a mistral has"),
    ({**SMALL, "model_type": "qwen3"}, "head_dim is missing, which a qwen3 has"),
    ({k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {"model_type": "qwen2"},
     "num_key_value_heads is missing, which a qwen2 has"),
    ({**LLAMA, "hidden_size": "wide"}, "hidden_size must be a whole number of at least 1, not 'wide'"),
    ({**LLAMA, "hidden_size": True}, "hidden_size must be a whole number of at least 1, not True"),
    ({**LLAMA, "num_key_value_heads": 4}, "num_attention_heads 6 is not divisible by num_key_value_heads 4"),
    ({**LLAMA, "num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size 24 is not divisible"),
    ({**LLAMA, "hidden_act": 3}, "hidden_act must be a name, not 3"),
    (SMALL | {"model_type": "glm4", "head_dim": 8, "attention_bias": True, "partial_rotary_factor": "half"},
     "partial_rotary_factor must be a number above 0 and at most 1, not 'half'"),
    (SMALL | {"model_type": "glm4", "head_dim": 8, "attention_bias": True, "partial_rotary_factor": float("nan")},
     "partial_rotary_factor must be a number above 0"),
    ({**LLAMA, "hidden_act": "mish"}, "unknown activation 'mish'"),
    ({**LLAMA, "attention_chunk_size": 8}, "attention_chunk_size 8 is read by nothing here, and a llama may be another"),
    ({**LLAMA, "tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, not 'no'"),
    (SMALL | VARIANTS["gpt_neox one after the other"], "num_key_value_heads 2 is read by nothing here"),
    (SMALL | VARIANTS["mistral tied"] | {"sliding_window": 0}, "sliding_window must be a whole number of at least 1"),
    (SMALL | VARIANTS["mistral tied"] | {"sliding_window": 1}, "sliding_window must be at least 2"),
    (SMALL | VARIANTS["deepseek_v3 by halves"] | {"kv_lora_rank": None}, "kv_lora_rank is null, and a deepseek_v3"),
    (SMALL | VARIANTS["mixtral with a window"] | {"num_local_experts": None}, "num_local_experts is null"),
    (SMALL | VARIANTS["mixtral with a window"] | {"num_experts": "4"}, "contradict each other"),
    (SMALL | VARIANTS["gemma2 without caps"] | {"sliding_window": None}, "sliding_window is null, and a gemma2"),
    (SMALL | VARIANTS["gemma2 without caps"] | {"attn_logit_softcapping": "x"}, "attn_logit_softcapping must be a number"),
    (SMALL | VARIANTS["qwen3 by layer"] | {"use_sliding_window": False}, "but use_sliding_window is false"),
    (SMALL | VARIANTS["deepseek_v2 in groups"] | {"n_shared_experts": 0}, "n_shared_experts must be at least 1"),
    (SMALL | VARIANTS["deepseek_v2 in groups"] | {"n_shared_experts": [1]}, "n_shared_experts must be a whole number"),
    (SMALL | VARIANTS["glm4_moe in groups"] | {"n_group": 8}, "a group of 1 experts has no best 2"),
    (SMALL | VARIANTS["cohere with norms"] | {"use_qk_norm": "no"}, "use_qk_norm must be true or false"),
    ({**LLAMA, "rope_scaling": "junk"}, "rope_scaling must hold fields or be null"),
    ({**LLAMA, "rope_parameters": {FULL: {"partial_rotary_factor": 0.5}}}, "of single kinds of layers"),
    ({**LLAMA, "num_hidden_layers": 10**7}, "num_hidden_layers must be at most 10000"),
    ({"model_type": "gemma3", "text_config": {}}, "a model of several parts; give the fields of its text part"),
    ({**LLAMA, "layer_types": FULL}, "layer_types must be a list of names or null"),
    (SMALL | VARIANTS["smollm3 by layer"] | {"no_rope_layers": ["a"] * 4}, "no_rope_layers must be a list of whole"),
    ({**LLAMA, "layer_types": [FULL]}, "layer_types has 1 entries, but num_hidden_layers is 4"),
    ({**LLAMA, "layer_types": [SLIDING] * 4}, "layer_types has sliding_attention, but there is no sliding_window"),
    ({**LLAMA, "layer_types": ["linear_attention"] * 4}, "unknown entry of layer_types 'linear_attention'"),
    ({**LLAMA, "is_encoder_decoder": True}, "is_encoder_decoder True is not supported of a llama: only false"),
    (SMALL | VARIANTS["mixtral with a window"] | {"num_experts": 5}, "contradict each other"),
    (SMALL | VARIANTS["mixtral with a window"] | {"num_experts_per_tok": 5}, "active experts k=5 cannot exceed"),
    (SMALL | VARIANTS["mistral tied"] | {"layer_types": [FULL] * 4}, "layer_types contradicts the windows"),
    (SMALL | VARIANTS["phi3 in part"] | {"partial_rotary_factor": 0.2}, "rotated elements of a head of 8 are no pairs"),
    (SMALL | VARIANTS["phi3 in part"] | {"rope_scaling": {"partial_rotary_factor": 1.0}}, "partial_rotary_factor differs"),
    (SMALL | VARIANTS["qwen2_5_vl_text"] | {"mrope_section": [2, 2]}, "mrope_section differs from that of rope_scaling"),
    (SMALL | VARIANTS["qwen2_5_vl_text"] | {"rope_scaling": {"mrope_section": [16, 24, 24]}},
     "mrope_section [16, 24, 24] must add up to 2, the pairs of a head that are rotated"),
    (SMALL | VARIANTS["qwen2_5_vl_text"] | {"rope_scaling": {"mrope_section": "half"}}, "mrope_section must be a list of"),
    ({**LLAMA, "rope_scaling": {"mrope_section": [1, 1]}}, "mrope_section [1, 1] is read by nothing here, and a llama"),
    (SMALL | VARIANTS["smollm3 by layer"] | {"no_rope_layers": [1]}, "no_rope_layers has 1 entries"),
    (SMALL | VARIANTS["qwen2 with a window"] | {"max_window_layers": None}, "max_window_layers is missing"),
    (SMALL | VARIANTS["deepseek_v2 in groups"] | {"n_shared_experts": {}}, "n_shared_experts must be a whole number"),
    (SMALL | VARIANTS["deepseek_v2 in groups"] | {"n_group": 3}, "routed experts 8 is not divisible by groups 3"),
    (SMALL | VARIANTS["deepseek_v2 in groups"] | {"topk_method": "noaux"}, "topk_method 'noaux' is not supported"),
    (SMALL | VARIANTS["deepseek_v3 by halves"] | {"first_k_dense_replace": 9}, "first_k_dense_replace 9 exceeds"),
    (SMALL | VARIANTS["gemma2 without caps"] | {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_bad_fields_are_one_sentence_with_the_file(fields, sentence):
    with pytest.raises(InputError) as error:
        model_of(fields, "mine")
    assert sentence in str(error.value) and str(error.value).startswith("mine: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "sentence"), [
    ('{"model_type": "llama", ', "is no JSON, or cut short"), ("[1, 2]", "must hold the fields of a config.json"),
    (None, "cannot read"), ("", "is no JSON"),
])  # fmt: skip
def test_bad_files_are_one_sentence(text, sentence, tmp_path):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        modelmeter.load_model(str(path))


@pytest.mark.parametrize("name", ["deepseek_v2_lite", "deepseek_v3"])
def test_engines_with_a_paged_cache_absorb_latents_in_decode_and_nowhere_else(name):
    model = modelmeter.load_model(name)
    works = {form: model.text(500, decode_steps=2, runtime="vllm", latent=form) for form in ("expanded", "absorbed")}
    decodes, prefills = ([model.cost(stage, work) for work in works.values()] for stage in ("decode", "prefill"))
    assert decodes[0] == decodes[1] and decodes[0].basis.endswith("latent absorbed")
    assert prefills[0].flops != prefills[1].flops and prefills[0].basis.endswith("latent expanded")
    [shape, *_] = [kernel.attention for kernel in model.kernels("decode", works["expanded"]) if kernel.attention]
    assert (shape["s"], shape["kv_heads"], shape["shared"]) == (1, 1, 1) and shape["heads"] > 1
    own = next(kernel.attention for kernel in model.kernels("prefill", works["expanded"]) if kernel.attention)
    assert own["heads"] == own["kv_heads"] == shape["heads"] and "shared" not in own
