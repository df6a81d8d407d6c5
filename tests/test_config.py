"""Configuration: what composes, how a model is read, what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import modelmeter
from modelmeter import config
from modelmeter.errors import InputError
from modelmeter.folders import PARTS, config_names
from modelmeter.models.model import BaseModel

CONFIGS = sorted(Path("configs").rglob("*.yaml"))
MODELS = config_names("model")


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_yaml_begins_with_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert re.match(r"# (python -m modelmeter\.sweep|modelmeter) \w+", first)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_composes_and_runs(name):
    model = modelmeter.load_model(name)
    assert isinstance(model, BaseModel) and model.name == name
    assert model.storage().parameters > 0


@pytest.mark.parametrize("name", MODELS)
def test_reading_a_model_directly_is_composing_it(name):
    direct, composed = config.as_it_stands(name), config.compose("cost", [f"model={name}"])
    assert direct == {group: composed[group] for group in ("model", *PARTS)}
    assert modelmeter.load_model(name).storage() == config.build_model(composed).storage()


@pytest.mark.parametrize("group", PARTS)
def test_every_component_stands_in_a_model(group):
    whole = {"tower": "deepencoder", "projector": "linear", "decoder": "deepseek_3b", "planner": "deepseek_crops"}
    clip = whole | {"tower": "clip_l14", "planner": "fixed_224"}
    alone = dict.fromkeys(whole, "none") | {"decoder": "minimind2_v"}
    fits = {"clip_l14": clip, "fixed_224": clip, "fixed_336": clip, "none": alone, "deepseek_crops": whole}
    nougat = whole | {"tower": "nougat_swin", "planner": "nougat"}
    fits |= {"nougat_swin": nougat, "nougat": nougat}
    for files in (config.chosen(model)[0] for model in MODELS):
        if files["tower"] != "none":
            fits.setdefault(files[group], files)
    for name in config_names(group):
        parts = fits.get(name, whole) | {group: name}
        kind = "text" if name == "none" else "vlm"
        model = modelmeter.load_model(kind, [f"{key}={value}" for key, value in parts.items()])
        assert model.storage().parameters > 0


def test_a_model_that_nobody_changes_is_read_without_hydra():
    code = "import sys, modelmeter; modelmeter.load_model('deepseek_ocr'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"hydra", "omegaconf", "numpy", "sympy", "torch", "PIL", "ruamel.yaml"}
    assert "modelmeter.models.vlm" in loaded and not heavy & set(loaded)


@pytest.mark.parametrize("name", config_names("sweep"))
def test_every_sweep_composes(name):
    assert config.compose("run_sweep", [f"sweep@_global_={name}"])["name"] == name


@pytest.mark.parametrize(
    "path", [p for g in ("tower", "decoder", "planner") for p in Path("configs", g).glob("*.yaml")], ids=str
)
def test_every_number_of_a_component_carries_its_source(path):
    sources = set(re.findall(r"\[(\w+)\]", path.read_text().splitlines()[1]))
    above = ""
    for line in path.read_text().splitlines()[2:]:
        value, _, comment = line.partition("#")
        above = above if value.startswith("  ") else comment
        if re.search(r":\s*[\[{\w]", value) and not value.startswith("family:"):
            named = re.findall(r"\[(\w+)\]", above + comment)
            assert named and set(named) <= sources, line


def test_overrides_change_the_model():
    small = modelmeter.load_model("deepseek_ocr", ["decoder.experts=32", "decoder.moe_layers=5"])
    whole = modelmeter.load_model("deepseek_ocr")
    expert, router = 3 * 1280 * 896, 1280
    rest = 233_720_320 - 64 * (expert + router)
    assert whole.storage().parameters - small.storage().parameters == 11 * 233_720_320 - 5 * (
        rest + 32 * (expert + router)
    )


def test_a_component_is_chosen_before_its_numbers_are_changed():
    model = modelmeter.load_model("text", ["decoder.layers=2", "decoder=minimind2_v"])
    block = 768 * 96 * (8 + 2 + 2 + 8) + 3 * 768 * 2048 + 2 * 768
    assert model.storage().parameters == 6400 * 768 + 2 * block + 768  # one table: tied


@pytest.mark.parametrize(("overrides", "message"), [
    (["tower.sam.hiden=4"], "unknown key 'tower.sam.hiden', did you mean 'tower.sam.hidden'"),
    (["tower.sam.hidden=770"], "sam hidden size 770 is not divisible by heads 12"),
    (["decoder.hidden=1290", "decoder.heads=11"], "decoder hidden size 1290 is not divisible by heads 11"),
    (["decoder.kv_heads=3"], "heads 10 is not divisible by KV heads 3"),
    (["decoder.active=65"], "k=65 cannot exceed routed experts E=64"),
    (["decoder.experts=0"], "E must be a whole number of at least 1, not 0"),
    (["projector.kind=mpl_gelu"], "unknown projector kind 'mpl_gelu', did you mean 'mlp_gelu'"),
    (["planner.max_crops=1"], "max_crops must be at least min_crops"),
    (["projector.inputs=5"], "projector inputs and the tower's features must be equal, not 5 and 2048"),
    (["tower.clip.hidden=512"], "SAM features and CLIP hidden size must be equal, not 1024 and 512"),
    (["projector.kind=identity"], "projector outputs and decoder hidden size must be equal, not 2048 and 1280"),
    (["decoder.tied=no"], "CausalLM.tied must be true or false"),
    (["decoder.gate_up=no"], "unknown gate_up 'no'; valid: merged, split"),
    (["decoder.rotary=vendor"], "unknown rotary 'vendor'; valid: layer, model"),
    (["tower.clip.projections=mergd"], "unknown projections 'mergd', did you mean 'merged'? Valid: merged, split"),
    (["tower.sam.patch=17"], "the tower's patch and the planner's must be equal, not 17 and 16"),
    (["tower.sam.patch=17", "planner.patch=17"], "must be a multiple of the patch, 17 pixels"),
    (["planner.modes.gundam.base=-640"], "modes.gundam.base must be a whole number of at least 1, not -640"),
    (["planner.fill=abc"], "fill must be a number of at least 0"),
    (["planner.max_crops=100000"], "max_crops must be at most 4096"),
    (["+decoder.head=1"], "unknown key of decoder: 'head', did you mean 'heads'? Valid: active, dense_layers"),
    (["~decoder.heads"], "decoder lacks heads; its keys: hidden, heads, kv_heads"),
    (["+decoder.heads=5"], "decoder.heads=5 goes without the plus sign: the key is there"),
    (["decoder={heads:5}"], "unknown decoder \"{'heads': 5}\"; valid: deepseek_3b, ernie_4_5_0_3b"),
    (["planner.modes.base={bse:5}"], "planner.modes.base takes new entries with a leading plus sign"),
    (["tower.sam=5"], "tower has not the shape of its YAML file"),
    (["tower.sam.hidden"], "'tower.sam.hidden' is not KEY=VALUE"),
    (["tower=clip_l14", "tower.sam.hidden=5"], "unknown key 'tower.sam.hidden', did you mean 'tower.hidden'"),
    (["decoder=deepseek"], "unknown decoder 'deepseek', did you mean 'deepseek_3b'? Valid: deepseek_3b, ernie_4_5_0_3b"),
    (["decoder=null"], "unknown decoder 'None'; valid: deepseek_3b, ernie_4_5_0_3b"),
    (["tower=clip"], "unknown tower 'clip', did you mean 'clip_l14'? Valid: clip_b16, clip_l14, deepencoder"),
    (["projector=[linear]"], "projector must be one value, not ['linear']"),
    (["projector=linear,mlp_gelu"], "projector=linear,mlp_gelu: only a sweep with --multirun takes several values"),
    (["planner=crops"], "unknown planner 'crops', did you mean 'deepseek_crops'? Valid: deepseek_crops, deepseek_crops_768, dots_ocr, fixed_1024"),
    (["decoder.family=lama"], "unknown family of decoder: 'lama', did you mean 'llama'? Valid: config_json, deepseek, llama"),
    (["tower=none"], "what reads images has tower, projector and planner, not projector and planner alone"),
    (["planner=fixed_224"], "the tower's patch and the planner's must be equal, not 16 and 14"),
    (["model.join=rowz"], "unknown model.join 'rowz', did you mean 'rows'? Valid: plain, rows"),
    (["device=h100_sxm"], "unknown key 'device', did you mean 'decoder'"),
    (["sweep@_global_=targets"], "cannot read the configuration (model=deepseek_ocr sweep@_global_=targets)"),
])  # fmt: skip
def test_bad_overrides_are_one_sentence(overrides, message):
    with pytest.raises(InputError) as error:
        modelmeter.load_model("deepseek_ocr", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parameters_do_not_depend_on_the_default_mode():
    base = modelmeter.load_model("deepseek_ocr", "planner.default_mode=base")
    assert base.storage() == modelmeter.load_model("deepseek_ocr").storage()


def test_an_unknown_model_is_named():
    with pytest.raises(InputError, match="unknown model 'deepseek_orc', did you mean 'deepseek_ocr'"):
        modelmeter.load_model("deepseek_orc")


def test_what_is_given_stays_as_it_was():
    given = ["decoder.experts=32"]
    modelmeter.load_model("deepseek_ocr", given)
    assert given == ["decoder.experts=32"]
    text = yaml.safe_load(Path("configs/decoder/deepseek_3b.yaml").read_text())
    assert text["experts"] == 64 and config.as_it_stands("deepseek_ocr")["decoder"] == text
