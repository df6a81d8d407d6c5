"""What published figures of a service would take to be true: writes the tables below the mark of docs/plan.md.

    python scripts/plan_page.py

Claims are those of configs/published/deepseek_ocr/service.csv; each condition is solved for
with all others as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from modelmeter import load_model
from modelmeter.catalogue import load_devices, load_host, load_profiles, published_table
from modelmeter.host import Span
from modelmeter.plans.conditions import (
    Case,
    Met,
    at_least,
    at_most,
    host_times_at_most,
    modes,
    pages_met,
    tokens_met,
)  # fmt: skip
from modelmeter.report.tables import markdown

MARK = "<!-- below: written by scripts/plan_page.py -->"
RUNTIMES = {
    "vllm": "vLLM, graphs for decode",
    "compile": "torch.compile",
    "sdpa": "eager PyTorch, scores on chip",
    "eager": "eager PyTorch, scores in memory",
}


def case() -> Case:
    """A4 pages at 200 dots an inch in the model's default mode, on the device of the claims, with vLLM."""
    [device], [page] = load_devices(["a100_40gb"]), load_profiles(["a4_200dpi"])
    model = load_model("deepseek_ocr")
    return Case(model, device, load_host(), page.image_size, page.prompt_tokens, page.output_tokens)


def span(found: Span, of: Callable[[float], str]) -> str:
    """The likely value with its interval."""
    return f"{of(found.seconds)} ({of(found.low)} to {of(found.high)})"


def predicted(of: Case) -> str:
    """Pages a day and tokens a second by mode and runtime."""
    rows = []
    cases = [(f"{one.mode}, {RUNTIMES['vllm']}", one) for one in modes(of)]
    cases += [
        (f"default (gundam), {told}", replace(of, runtime=name)) for name, told in RUNTIMES.items() if name != "vllm"
    ]
    for told, one in cases:
        pages, tokens = one.pages_per_day, one.tokens_per_s(100)
        rows.append(
            {
                "mode, runtime": told, "image tokens": one.image_tokens,
                "thousand pages a day": span(pages, lambda n: f"{n / 1e3:,.0f}"),
                "million on 160": span(pages, lambda n: f"{n * 160 / 1e6:,.0f}"),
                "tokens/s, 100 pages at once": span(tokens, lambda n: f"{n:,.0f}"),
            }
        )  # fmt: skip
    return markdown(rows, ("mode, runtime",))


def told(number: float | None, none: str) -> str:
    """A number, or what it means that there is none."""
    return none if number is None else f"{number:,.1f}".removesuffix(".0") if number else "nothing is enough"


def answers(of: Case, met: Met, of_pages: bool) -> str:
    """Longer answers make fewer pages a day, and more tokens a second of a page."""
    if of_pages:
        return f"at most {told(at_most(of, 'output_tokens', met), 'any')}"
    return f"at least {told(at_least(of, 'output_tokens', met), 'no number')}"


def step_ms(of: Case, met: Met) -> str:
    """Scheduling and sampling beside a step, at most."""
    times = host_times_at_most(of, met)
    return "any" if times is None else f"{1e3 * times * of.host.step.seconds:.0f}"


def conditions(of: Case, claim: dict[str, str]) -> dict[str, str]:
    """What must hold for a claim, each alone."""
    pages = float(claim["pages_per_day"] or 0) / float(claim["devices"])
    users = int(claim["users"] or 0)

    def met(end: str) -> Met:
        return pages_met(pages, end) if pages else tokens_met(float(claim["tokens_per_s"]), users, end)

    likely, sure = met("seconds"), met("low")
    both = lambda solve: f"{solve(likely)} ({solve(sure)})"
    able = [one.mode for one in modes(of) if likely(one)]
    safe = [one.mode for one in modes(of) if sure(one)]
    runtimes = [name for name in RUNTIMES if likely(replace(of, runtime=name))]
    kept = [name for name in RUNTIMES if sure(replace(of, runtime=name))]
    return {
        "claim": claim["claim"],
        "output tokens a page": both(lambda m: answers(of, m, bool(pages))),
        "pages in a batch, at least": both(lambda m: told(at_least(of, "limit", m), "no number")),
        "cores for images, at least": both(lambda m: told(at_least(of, "host_threads", m), "no number")),
        "ms of the host's step, at most": both(lambda m: step_ms(of, m)),
        "modes": f"{', '.join(map(str, able)) or 'none'} ({', '.join(map(str, safe)) or 'none'})",
        "runtimes": f"{', '.join(runtimes) or 'none'} ({', '.join(kept) or 'none'})",
    }


def main() -> None:
    """Write the page."""
    page, of = Path("docs/plan.md"), case()
    claims = published_table("deepseek_ocr", "service")
    rows = [conditions(of, claim) for claim in claims]
    tables = [
        {"what must be true": key} | {row["claim"]: row[key] for row in rows} for key in rows[0] if key != "claim"
    ]
    sources = [f"- {claim['claim']}: {claim['source']}" for claim in claims]
    pages = span(of.pages_per_day, lambda n: f"{n / 1e3:,.0f}")
    batch = rows[0]["pages in a batch, at least"].partition(" ")[0]
    lead = (
        f"On vLLM {pages} thousand pages a day and device are predicted, so that the figures need a batch of "
        f"{batch} at least, or a runtime or a mode that costs as much more; nothing beyond that would have to be true."
    )
    lines = [MARK, "", lead, "", "### Predicted", "", predicted(of), "", "### What would have to be true", "",
             markdown(tables, ("what must be true",)), "", *sources]  # fmt: skip
    page.write_text(page.read_text().partition(MARK)[0] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
