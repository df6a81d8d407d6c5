"""Settings: each key is declared once; YAML has its default, every door checks against it."""

from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from modelmeter import catalogue, config
from modelmeter.errors import InputError
from modelmeter.publish import settings_of, sweep_tables
from modelmeter.settings import COUNTING, DEPTH, OUTPUT, PAGE, RUNTIMES, checked, config_names, kind_columns
from modelmeter.workload import ATTENTION, Workload

SWEEPS = config_names("sweep")


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_declares_exactly_the_keys_of_its_configuration(name):
    keys = config.compose("run_sweep", [f"sweep@_global_={name}"]).keys()
    assert {s.name for s in settings_of(name) if "." not in s.name} == keys - {"name", "model"}


def test_a_command_declares_exactly_the_keys_of_its_configuration():
    declared = {s.name for s in (*PAGE, *COUNTING, DEPTH) if "." not in s.name}
    assert declared == config.compose("cost").keys() - {"model"}


def test_every_default_is_one_that_its_setting_takes():
    checked((*PAGE, *COUNTING, DEPTH), config.compose("cost"))
    for name in SWEEPS:
        checked(settings_of(name), config.compose("run_sweep", [f"sweep@_global_={name}"]))


def test_a_workload_made_in_python_has_the_defaults_of_the_command_line():
    given = config.compose("cost")
    for field in fields(Workload):
        if field.name in given and field.default is not MISSING:
            assert field.default == given[field.name], field.name


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
    for path in [Path("configs") / f"{name}.yaml" for name in ("counting", "page", "cost", "output", "run_sweep")]:
        assert not any("#" in line for line in path.read_text().splitlines()[2:]), path


@pytest.mark.parametrize("name", config_names(RUNTIMES))
def test_a_runtime_names_its_attention(name):
    assert kind_columns(name) == {"attention": "eager" if name == "eager" else "flash", "execution": name}
    assert kind_columns(name)["attention"] in ATTENTION


def test_numbers_carry_the_comment_behind_them():
    found = {name: (value, source) for name, value, source in catalogue.dims_with_sources("deepseek_ocr")}
    text = Path("configs/model/deepseek_ocr.yaml").read_text()
    numbers = yaml.safe_load(text)["dims"]
    assert found.keys() == {f"{part}.{name}" for part, group in numbers.items() for name in group}
    assert all(f"{name.rpartition('.')[2]}: {value} # {source}\n" in text for name, (value, source) in found.items())
    assert all(source.startswith("[") for _, source in found.values())


def test_modules_of_sweeps_have_help_for_every_setting():
    for name in SWEEPS:
        assert all(setting.help for setting in import_module(f"modelmeter.sweep.{name}").SETTINGS)
    assert all(setting.help for setting in OUTPUT)
