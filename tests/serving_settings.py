"""Settings of a service that the closed form and the simulation are compared on; scripts/serving_check.py runs all.

The step times are a toy: a step takes as long as its weights take to read or its tokens to compute, and attention adds
to it. `SEEN` were looked at while the closed form was written; `HELD_OUT` were written down before they were first run.
"""

from dataclasses import dataclass, replace

import numpy as np

from modelmeter.serving import Apart, Empirical, Engine, Fixed, LogNormal, Mix, Service, StepTimes, Uniform


def toy(floor=4e-3, token=2e-5, row=5e-6, kv=4e-9, attention=3e-9, vision=0.0, host=0.0):
    """Step times: `floor` for the weights, `token` for a token of a prompt, `vision` for an image token, in seconds."""
    return StepTimes(
        prefill=lambda new, cached: np.maximum(floor, new * token) + attention * new * (cached + new / 2),
        decode=lambda batch, context: np.maximum(floor, batch * token) + row * batch + kv * batch * context,
        vision=lambda requests: vision * requests.image_tokens,
        host=lambda requests: np.full(len(requests), host),
    )


@dataclass(frozen=True)
class Setting:
    """A service, a mix and a load: a share of the greatest, a number of users, or more than it can bear (neither)."""

    service: Service
    mix: Mix
    share: float | None = None
    users: int | None = None


TAIL = Mix(prompt=LogNormal.of(p50=500, p99=6000), output=LogNormal.of(mean=200, p99=1000))
CHAT = Mix(prompt=Fixed(1000), output=Fixed(200))
LONG = Mix(prompt=Fixed(6000), output=Uniform(50, 150))
PAGES = Mix(image=Uniform(100, 800), prompt=Fixed(10), output=Uniform(1, 60))
SHORT = Mix(prompt=Fixed(300), output=Uniform(100, 300))
KV = Mix(prompt=Uniform(200, 1800), output=Uniform(100, 300))
OCR = Mix(image=Fixed(900), prompt=Fixed(10), output=LogNormal.of(mean=200, p99=1000))
plain, first = Engine(toy()), Engine(toy(), policy="prefill_first")
narrow, seats = Engine(toy(), max_batched_tokens=2048), Engine(toy(), max_num_seqs=16)
kept = Engine(toy(), kv_bytes=30000, kv_bytes_per_token=1, keeping="reserve")
grown = replace(kept, keeping="grow")
seeing, hosted = Engine(toy(vision=2e-4)), Engine(toy(host=0.087))
parts = Service(
    Engine(toy(vision=1e-4, host=0.02), kv_bytes=80000, kv_bytes_per_token=1, max_num_seqs=64),
    apart=Apart(prefill=2, decode=2, vision=2, link_bytes_per_s=2e5, link_s=1e-3, embedding_bytes_per_token=1),
)

fast, slow = toy(1.5e-3, 4e-6, 2e-6, 1e-9, 5e-10, 3e-5, 0.015), toy(12e-3, 8e-5, 2e-5, 2e-8, 1e-8, 1e-4)
CODE = Mix(prompt=LogNormal.of(p50=1500, p90=6000), output=LogNormal.of(p50=20, p90=80))
ESSAY = Mix(prompt=Uniform(50, 150), output=LogNormal.of(p50=600, p90=1500))
BOOK = Mix(image=Empirical([256, 400, 800], [5, 3, 2]), prompt=Fixed(8), output=LogNormal.of(p50=700, p99=3000))
FORMS = Mix(image=Empirical([300, 1200]), prompt=Uniform(20, 200), output=Uniform(20, 120))
SEARCH = Mix(prompt=LogNormal.of(mean=3000, p99=9000), output=LogNormal.of(mean=60, p99=300))
SUMMARY = Mix(prompt=Uniform(2000, 10000), output=Uniform(100, 400))

SEEN = {
    "chat, light": Setting(Service(plain), CHAT, 0.3),
    "chat": Setting(Service(plain), CHAT, 0.6),
    "chat, busy": Setting(Service(plain), CHAT, 0.9),
    "prefill first": Setting(Service(first), CHAT, 0.6),
    "prefill first, busy": Setting(Service(first), CHAT, 0.8),
    "heavy tails": Setting(Service(plain), TAIL, 0.6),
    "heavy tails, prefill first": Setting(Service(first), TAIL, 0.8),
    "long prompts": Setting(Service(narrow), LONG, 0.6),
    "pages, short answers": Setting(Service(seeing), PAGES, 0.6),
    "16 seats": Setting(Service(seats), SHORT, 0.8),
    "KV reserved": Setting(Service(kept), KV, 0.8),
    "KV grows": Setting(Service(grown), KV, 0.6),
    "one thread of CPU": Setting(Service(hosted), OCR, 0.7),
    "chat, 64 users": Setting(Service(plain), CHAT, users=64),
    "heavy tails, 8 users": Setting(Service(plain), TAIL, users=8),
    "KV grows, max load": Setting(Service(grown), KV),
    "static batch, max load": Setting(Service(Engine(toy(), policy="static", max_num_seqs=32)), SHORT),
    "code, light": Setting(Service(Engine(fast)), CODE, 0.25),
    "code": Setting(Service(Engine(fast)), CODE, 0.7),
    "code, slow device": Setting(Service(Engine(slow)), CODE, 0.5),
    "books, CPU busy": Setting(Service(Engine(fast, host_threads=1)), BOOK, 0.85),
    "stations apart": Setting(parts, Mix(image=Fixed(256), prompt=Fixed(1000), output=Uniform(100, 300)), 0.8),
}
HELD_OUT = {
    "forms, light": Setting(Service(Engine(fast)), FORMS, 0.25),
    "forms": Setting(Service(Engine(fast)), FORMS, 0.7),
    "forms, slow device": Setting(Service(Engine(slow)), FORMS, 0.5),
    "search, light": Setting(Service(Engine(slow)), SEARCH, 0.3),
    "search": Setting(Service(Engine(fast)), SEARCH, 0.75),
    "essays": Setting(Service(Engine(slow)), ESSAY, 0.7),
    "essays, 64 seats": Setting(Service(Engine(fast, max_num_seqs=64)), ESSAY, 0.85),
    "essays, prefill first": Setting(Service(Engine(slow, policy="prefill_first")), ESSAY, 0.9),
    "books": Setting(Service(Engine(fast, host_threads=4)), BOOK, 0.5),
    "books, busy": Setting(Service(Engine(fast, host_threads=16)), BOOK, 0.85),
    "forms, CPU busy": Setting(Service(Engine(toy(2e-3, 1e-5, vision=1e-5, host=0.03), host_threads=2)), FORMS, 0.8),
    "books, 3 replicas": Setting(Service(Engine(fast, host_threads=4), replicas=3), BOOK, 0.7),
    "books, 4 replicas in turn": Setting(Service(Engine(fast, host_threads=4), 4, "round_robin"), BOOK, 0.8),
    "summaries": Setting(Service(Engine(fast, max_batched_tokens=4096)), SUMMARY, 0.6),
    "summaries, busy": Setting(Service(Engine(fast, max_batched_tokens=4096)), SUMMARY, 0.85),
    "summaries, KV": Setting(Service(Engine(fast, kv_bytes=2e5, kv_bytes_per_token=1, keeping="reserve")), SUMMARY, 0.6),
    "essays, KV grows": Setting(Service(Engine(slow, kv_bytes=4e4, kv_bytes_per_token=1)), ESSAY, 0.7),
    "essays, KV grows, max load": Setting(Service(Engine(slow, kv_bytes=4e4, kv_bytes_per_token=1)), ESSAY),
    "summaries, max load": Setting(Service(Engine(fast)), SUMMARY),
    "books, 100 users": Setting(Service(Engine(fast, host_threads=8)), BOOK, users=100),
    "code, 16 users": Setting(Service(Engine(slow)), CODE, users=16),
    "books, apart": Setting(
        Service(Engine(fast, max_num_seqs=128, kv_bytes=1e6, kv_bytes_per_token=1, host_threads=4),
                apart=Apart(prefill=1, decode=3, vision=1, link_bytes_per_s=1e6, embedding_bytes_per_token=1)), BOOK, 0.75),
    "summaries, apart": Setting(Service(Engine(slow), apart=Apart(prefill=3, decode=1)), SUMMARY, 0.7),
    "search, 95 % load": Setting(Service(Engine(fast)), SEARCH, 0.95),
    "books, 95 % load": Setting(Service(Engine(fast, host_threads=16)), BOOK, 0.95),
}  # fmt: skip
