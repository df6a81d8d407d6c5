"""Configuration: what composes, what may be instantiated, what is refused."""

import re
from pathlib import Path

import pytest

import modelmeter
from modelmeter import config
from modelmeter.errors import InputError
from modelmeter.models.model import Model

CONFIGS = sorted(Path("configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_yaml_begins_with_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert re.match(r"# (python -m modelmeter\.sweep|modelmeter) \w+", first)


@pytest.mark.parametrize("name", config.config_names("model"))
def test_every_model_composes_and_runs(name):
    model = modelmeter.load_model(name)
    assert isinstance(model, Model) and model.name == name
    assert model.storage().parameters > 0


@pytest.mark.parametrize("name", config.config_names("sweep"))
def test_every_sweep_composes(name):
    assert config.compose("run_sweep", [f"sweep@_global_={name}"])["name"] == name


def test_every_number_of_a_model_carries_its_source():
    for path in Path("configs/model").glob("*.yaml"):
        text = path.read_text()
        if "\ndims:" not in text:
            assert "\n  - deepseek_ocr\n" in text  # the numbers of another model, which carries their sources
            continue
        dims = text[text.index("dims:") : text.index("\npreprocess:")]
        sources = set(re.findall(r"\[(\w+)\]", text[: text.index("_target_")]))
        for line in dims.splitlines():
            if re.search(r":\s*[\[\w]", line.partition("#")[0]):
                named = re.findall(r"\[(\w+)\]", line.partition("#")[2])
                assert named and set(named) <= sources, line


def test_overrides_change_the_model():
    small = modelmeter.load_model("deepseek_ocr", ["dims.decoder.experts=32", "model.dims.decoder.moe_layers=5"])
    whole = modelmeter.load_model("deepseek_ocr")
    expert, router = 3 * 1280 * 896, 1280
    rest = 233_720_320 - 64 * (expert + router)
    assert whole.storage().parameters - small.storage().parameters == 11 * 233_720_320 - 5 * (
        rest + 32 * (expert + router)
    )


@pytest.mark.parametrize(("overrides", "message"), [
    (["dims.sam.hiden=4"], "unknown key 'model.dims.sam.hiden', did you mean 'model.dims.sam.hidden'"),
    (["dims.sam.hidden=770"], "sam hidden size 770 is not divisible by heads 12"),
    (["dims.decoder.hidden=1290", "dims.decoder.heads=11"], "decoder hidden size 1290 is not divisible by heads 11"),
    (["dims.decoder.kv_heads=3"], "heads 10 is not divisible by KV heads 3"),
    (["dims.decoder.active=65"], "k=65 cannot exceed routed experts E=64"),
    (["dims.decoder.experts=0"], "E must be a whole number of at least 1, not 0"),
    (["dims.projector.kind=mpl_gelu"], "unknown projector kind 'mpl_gelu', did you mean 'mlp_gelu'"),
    (["preprocess.max_crops=1"], "max_crops must be at least min_crops"),
    (["dims.projector.inputs=5"], "projector inputs and SAM + CLIP features must be equal, not 5 and 2048"),
    (["dims.clip.hidden=512"], "SAM features and CLIP hidden size must be equal, not 1024 and 512"),
    (["dims.projector.kind=identity"], "projector outputs and decoder hidden size must be equal, not 2048 and 1280"),
    (["decoder.head.d=7"], "CausalLM: embedding is 1280 and head is 7; they must be equal"),
    (["decoder.tied=no"], "CausalLM.tied must be true or false"),
    (["dims.sam.patch=17"], "must be a multiple of the patch, 17 pixels"),
    (["preprocess.modes.gundam.base=-640"], "modes.gundam.base must be a whole number of at least 1, not -640"),
    (["preprocess.fill=abc"], "fill must be a number of at least 0"),
    (["preprocess.max_crops=100000"], "max_crops must be at most 4096"),
    (["+decoder.head.x=1"], "configuration of the model.decoder.head is wrong: LMHead.__init__() got an unexpected keyword argument 'x'"),
    (["dims.sam.hidden"], "cannot read the configuration"),
    (["sam._target_=os.system"], "'os.system' is not a class of modelmeter"),
])  # fmt: skip
def test_bad_overrides_are_one_sentence(overrides, message):
    with pytest.raises(InputError) as error:
        modelmeter.load_model("deepseek_ocr", overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_parameters_do_not_depend_on_the_default_mode():
    base = modelmeter.load_model("deepseek_ocr", "preprocess.default_mode=base")
    assert base.storage() == modelmeter.load_model("deepseek_ocr").storage()


def test_an_unknown_model_is_named():
    with pytest.raises(InputError, match="unknown model 'deepseek_orc', did you mean 'deepseek_ocr'"):
        modelmeter.load_model("deepseek_orc")


@pytest.mark.parametrize("target", [
    "os.system", "builtins.eval", "subprocess.Popen", "modelmeter.cli.sys.exit", "modelmeter.cli.main",
    "modelmeter.config.Path", "modelmeterx.Layer", "modelmeter_other.layers.Layer", "modelmeter",
])  # fmt: skip
def test_only_classes_of_modelmeter_may_be_instantiated(target):
    for node in ({"_target_": target}, {"_target_": "modelmeter.layers.LMHead", "V": [{"_target_": target}], "d": 2}):
        with pytest.raises(InputError, match="is not a class of modelmeter; allow others by name"):
            config.build(node)


def test_an_unknown_layer_is_named():
    with pytest.raises(InputError, match="unknown layer 'LMHaed', did you mean 'LMHead'"):
        config.build({"_target_": "modelmeter.layers.LMHaed", "V": 3, "d": 2})


def test_a_class_that_the_user_allows_is_instantiated():
    node = {"_target_": "fractions.Fraction", "numerator": 3}
    with pytest.raises(InputError):
        config.build(node)
    assert config.build(node, allow=["fractions.Fraction"]) == 3
