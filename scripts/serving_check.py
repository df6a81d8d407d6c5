"""The closed form of serving against the simulation, setting by setting: writes the table of docs/serving.md.

    python scripts/serving_check.py

Settings are those of tests/serving_settings.py; it needs the extra `simulation` and some minutes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, "tests")
from serving_settings import HELD_OUT, SEEN, Setting

from modelmeter.serving import ClosedForm, Served, Simulation

MARK = "<!-- below: written by scripts/serving_check.py -->"
COUNT, SEEDS = 4000, (1, 2)
FIGURES = {
    "requests/s": lambda served: served.requests_per_s,
    "TPOT": lambda served: served.tpot_s.mean,
    "TTFT": lambda served: served.ttft_s.mean,
    "TTFT p90": lambda served: served.ttft_s.p90,
    "TTFT p99": lambda served: served.ttft_s.p99,
    "end to end": lambda served: served.e2e_s.mean,
}


def both(setting: Setting) -> tuple[Served, list[Served]]:
    """What the closed form says of a setting, and what the simulation does with each seed."""
    answer = ClosedForm(setting.service, setting.mix)
    load: dict = {}
    if setting.share:
        load = {"rate": setting.share * answer.greatest}
        told = answer.at(load["rate"])
    elif setting.users:
        load = {"concurrency": setting.users}
        told = answer.users(setting.users)
    else:
        told = answer.most_load()
    return told, [Simulation(setting.service, setting.mix, **load, count=COUNT, seed=seed).run() for seed in SEEDS]


def errors(setting: Setting) -> dict[str, float]:
    """By figure, how far the closed form is from the mean of the simulations; nan where it tells none."""
    told, seen = both(setting)
    found = {}
    for name, figure in FIGURES.items():
        mean = sum(figure(one) for one in seen) / len(seen)
        value = figure(told)
        alone = not setting.share and not setting.users and name != "requests/s"  # a queue without end has no times
        found[name] = math.nan if alone or not math.isfinite(value) else value / mean - 1
    return found


def table(settings: dict[str, Setting], found: dict[str, dict[str, float]]) -> list[str]:
    """Markdown rows."""
    lines = [f"| setting | load | {' | '.join(FIGURES)} |", "|---" * (2 + len(FIGURES)) + "|"]
    for name, setting in settings.items():
        load = f"{setting.share:.0%}" if setting.share else f"{setting.users} users" if setting.users else "max"
        cells = ["" if math.isnan(error) else f"{error:+.1%}" for error in found[name].values()]
        lines.append(f"| {name} | {load} | {' | '.join(cells)} |")
    return lines


def told(found: dict[str, dict[str, float]], settings: dict[str, Setting]) -> list[str]:
    """How many are within 10 % where the load is 90 % or less, by figure, the error of most of them, and the worst."""
    lines = ["| figure | settings | within 10 % | median error | nine in ten within | worst |", "|---" * 6 + "|"]
    for figure in FIGURES:
        sizes = sorted(
            (abs(one[figure]), name)
            for name, one in found.items()
            if (settings[name].share or 0) <= 0.9 and not math.isnan(one[figure])
        )
        close, (worst, name) = sum(size <= 0.1 for size, _ in sizes), sizes[-1]
        middle, most = (sizes[int(level * (len(sizes) - 1))][0] for level in (0.5, 0.9))
        lines.append(f"| {figure} | {len(sizes)} | {close} | {middle:.1%} | {most:.1%} | {worst:.0%}, {name} |")
    return lines


def main() -> None:
    """Run all, and write the page."""
    page = Path("docs/serving.md")
    lines = [MARK, ""]
    for title, settings in (("Held out", HELD_OUT), ("Seen while it was written", SEEN)):
        found = {}
        for name, setting in settings.items():
            found[name] = errors(setting)
            print(name, {figure: f"{error:+.1%}" for figure, error in found[name].items()}, flush=True)
        lines += [f"### {title}", "", *told(found, settings), "", *table(settings, found), ""]
    page.write_text(page.read_text().partition(MARK)[0] + "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
