"""Fit the laws of time to measured kernels and write their constants: laws.yaml of the package, and each device's own.

python scripts/fit_laws.py DATA_FOLDER [--date 2026-11-26] [--page docs/kernel-times.md]

DATA_FOLDER holds gemm.parquet, context_attention.parquet, ... of NVIDIA's open kernel database, which are not part of
this repository. One shape in five, by its hash, is left out of every fit; a device's own constants and the errors that
are written beside them come from the others and from these. Takes some minutes on one core.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml

from modelmeter.catalogue import load_devices
from modelmeter.seconds import page
from modelmeter.seconds.constants import FILE
from modelmeter.seconds.measured import read
from modelmeter.seconds.score import Score, of_nvidia, scores, spread
from modelmeter.seconds.train import PLAIN, Trained

SOURCE = "NVIDIA's open kernel database, ai-dynamo/aiconfigurator commit 095f58a, Apache-2.0"
MARK = "laws: # written by scripts/fit_laws.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--page", type=Path, help="write the score into this page of the docs too")
    options = parser.parse_args()
    groups = read(options.folder, {device.name: device for device in load_devices()})
    nvidia = of_nvidia(groups)
    architectures = {g.device.name: g.device.architecture for g in groups if g.device.name in nvidia}
    laws: dict[str, Any] = {}
    devices: dict[str, dict[str, Any]] = {}
    told: list[Score] = []
    for trained, found in scores(groups, lambda text: print(text, file=sys.stderr, flush=True)):
        name = trained.law.name
        told += found
        laws[name] = shared(trained, found, architectures)
        for device in trained.own:
            devices.setdefault(device, {})[name] = own(trained, found, device)
    if options.page:
        page.write(options.page, page.text_of(told, nvidia))
    known = {"source": SOURCE, "date": options.date, "laws": laws}
    FILE.write_text(
        "# Constants of the laws that all NVIDIA devices share; written by scripts/fit_laws.py\n" + text(known)
    )
    for device, content in devices.items():
        write(Path("configs/device") / f"{device}.yaml", {"source": SOURCE, "date": options.date, **content})


def shared(trained: Trained, found: Sequence[Score], nvidia: Mapping[str, str]) -> dict[str, Any]:
    """What devices of a law share: all of them, with the errors on those left out, and the kin of a measured one.

    `nvidia` are the architectures of the measured devices.
    """
    kin = {nvidia[name]: {"device": name, **measured(trained, name)} for name in trained.own if name in nvidia}
    return {
        "constants": rounded(trained.shared),
        "variants": {name: rounded(values) for name, values in trained.extras.items()},
        "plain": list(PLAIN),
        "error": errors(found, "device", set(nvidia)),
        "kin": kin,
        "spread": {kind: [rows(row) for row in factors] for kind, factors in spread(found, nvidia).items()},
    }


def own(trained: Trained, found: Sequence[Score], device: str) -> dict[str, Any]:
    """A device's own constants, with the errors on shapes that were left out."""
    return {**measured(trained, device), "error": errors(found, "shapes", {device})}


def measured(trained: Trained, device: str) -> dict[str, Any]:
    """A device's own constants, and those of its variants."""
    variants = {name: rounded(values) for name, values in trained.own_extras.get(device, {}).items()}
    return {**rounded(trained.own[device]), **({"variants": variants} if variants else {})}


def errors(found: Sequence[Score], left_out: str, devices: set[str]) -> dict[str, float]:
    """Median errors by variant and device."""
    kept = [s for s in found if s.left_out == left_out and s.device in devices]
    several = len(devices) > 1
    return {f"{s.variant} {s.device}" if several else s.variant: round(s.quantile(0.5), 3) for s in kept}


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def rows(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def text(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=118)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Put the laws of a device at the end of its YAML, in place of those that are there."""
    above = path.read_text().partition("laws:")[0].rstrip("\n")
    below = "".join(f"  {line}\n" for line in text(content).splitlines())
    path.write_text(f"{above}\n{MARK}\n{below}")


if __name__ == "__main__":
    main()
