"""One model of each kind of the catalogue, for what holds by code and not by numbers."""

from modelmeter import config
from modelmeter.folders import config_names


def kind_of(name):
    """What of a model is code: the type of a config.json, else its components, a decoder by its family."""
    files, values = config.chosen(name)
    if "config" in values:
        return values["config"]["model_type"]
    decoder = config._yaml("decoder", files["decoder"]).get("family") if "decoder" in files else None
    return files.get("tower"), files.get("projector"), files.get("planner"), str(decoder)


ONE_OF_EACH = sorted({kind_of(name): name for name in reversed(config_names("model"))}.values())
"""The first model of each kind, by name."""
