"""Settings: each key is declared once; YAML has its default, every door checks against it."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from modelmeter import catalogue, cli, config
from modelmeter.errors import InputError
from modelmeter.folders import PARTS, config_names
from modelmeter.publish import settings_of, sweep_tables
from modelmeter.runtimes.runtime import Runtime
from modelmeter.settings import CHOICES, COUNTING, DEPTH, OUTPUT, PAGE, REPORT, checked
from modelmeter.sweep.registry import SWEEPS as MODULES
from modelmeter.workload import Workload

SWEEPS = config_names("sweep")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_declares_exactly_the_keys_of_its_configuration(name):
    keys = config.compose("run_sweep", [f"sweep@_global_={name}"]).keys()
    assert {s.name for s in settings_of(name) if "." not in s.name} == keys - {"name", "model", *PARTS}


def test_a_command_declares_exactly_the_keys_of_its_configuration():
    declared = {s.name for s in (*PAGE, *COUNTING, DEPTH) if "." not in s.name}
    assert declared == config.compose("cost").keys() - {"model", *PARTS}


def test_every_default_is_one_that_its_setting_takes():
    checked((*PAGE, *COUNTING, DEPTH), config.compose("cost"))
    checked(REPORT, config.compose("run_report"))
    for name in SWEEPS:
        checked(settings_of(name), config.compose("run_sweep", [f"sweep@_global_={name}"]))


def test_a_workload_made_in_python_has_the_defaults_of_the_command_line():
    given = config.compose("cost")
    for field in fields(Workload):
        if field.name in given and field.default is not MISSING:
            default = getattr(Workload(image=None), field.name)
            of = field.metadata.get("of", lambda value: value)
            assert default == of(given[field.name]), field.name


def test_a_counting_option_is_declared_once():
    options = {field.name: field.metadata for field in fields(Workload) if field.metadata}
    declared = {setting.name: setting for setting in COUNTING if "." not in setting.name}
    assert declared.keys() == options.keys() and options.keys() == {
        "runtime", "causal", "logits", "precision", "parallel", "latent",
    }  # fmt: skip
    assert all(declared[name].help == metadata["help"] for name, metadata in options.items())


def test_what_a_model_is_put_together_from_are_folders_of_configs():
    assert [setting.name for setting in CHOICES] == ["model", *PARTS]
    for setting in CHOICES:
        assert all(setting.check(name) == name and name in setting.help for name in config_names(setting.name))
        with pytest.raises(InputError, match=f"unknown {setting.name} 'nothing'"):
            setting.check("nothing")


@pytest.mark.parametrize("name", SWEEPS)
def test_python_is_refused_what_the_command_line_is(name, model):
    settings = config.compose("run_sweep", [f"sweep@_global_={name}"])
    for key, value in (("logits", "lst"), ("runtime", ["fast"]), ("precision", "bf61"), ("figures", "maybe")):
        with pytest.raises(InputError):
            sweep_tables(name, model, settings | {key: value})
        with pytest.raises(InputError):
            config.compose(
                "run_sweep", [f"sweep@_global_={name}", f"{key}={value}".replace("'", "")], settings_of(name)
            )


def test_yaml_of_settings_holds_values_and_no_help():
    for path in [
        Path("configs") / f"{name}.yaml" for name in ("counting", "page", "cost", "output", "run_sweep", "run_report")
    ]:
        assert not any("#" in line for line in path.read_text().splitlines()[2:]), path


@pytest.mark.parametrize("name", config_names("runtime"))
def test_a_runtime_names_its_attention(name, model):
    assert Runtime.of(name).attention == (
        "eager" if name in ("eager", "llama_cpp_scores", "llama_cpp_2024") else "flash"
    )
    work = model.workload(grid="1x2", runtime=name)
    assert (work.attention, work.execution) == (Runtime.of(name).attention, name)


def test_runtime_is_one_key_at_every_door(model, capsys):
    assert config.compose("cost", ["runtime=eager"])["runtime"] == "eager"
    assert config.compose("run_sweep", ["runtime=[eager,fused]"], settings_of("vision_crops"))["runtime"] == [
        "eager",
        "fused",
    ]
    assert "runtimes" not in config.compose("cost")
    for door in (
        lambda: model.workload(grid="1x2", runtime="fast"),
        lambda: config.compose("cost", ["runtime=fast"], COUNTING),
    ):
        with pytest.raises(InputError, match="unknown runtime 'fast', did you mean 'flash'"):
            door()
    assert cli.main(["cost", "deepseek_ocr", "grid=1x2", "runtime=fused"]) == 0
    assert "; fused, causal full" in capsys.readouterr().out


@pytest.mark.parametrize("model", config_names("model"))
def test_numbers_carry_the_comment_behind_them(model):
    found = {name: (value, source) for name, value, source in catalogue.dims_with_sources(model)}
    files, values = config.chosen(model)
    if "config" in values:  # one source for all fields of a config.json
        assert {source for _, source in found.values()} == {"[json]"}
        assert found.keys() == {*leaves(values["config"], "model.config.")}
        return
    texts = {group: Path(f"configs/{group}/{file}.yaml").read_text() for group, file in files.items()}
    assert found.keys() == {
        name
        for group, text in texts.items()
        for name in leaves(yaml.safe_load(text), f"{group}.")
        if name != f"{group}.family"
    }
    for name, (value, source) in found.items():
        group, _, key = name.partition(".")
        written = f"{key.rpartition('.')[2]}: {value} # {source}\n"
        assert written in texts[group] or (key.startswith("modes.") and source.startswith("[paper] table 1")), name
    assert found and all(
        source.startswith("[") for name, (_, source) in found.items() if not name.startswith("projector.")
    )


def leaves(values, prefix):
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_every_sweep_of_configs_stands_in_the_registry():
    assert sorted(MODULES) == SWEEPS


def test_modules_of_sweeps_have_help_for_every_setting():
    for name in SWEEPS:
        assert all(setting.help for setting in MODULES[name].SETTINGS)
    assert all(setting.help for setting in (*OUTPUT, *REPORT, *CHOICES))
