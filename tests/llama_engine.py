"""What llama.cpp itself reports of a GGUF file: the prebuilt package xllamacpp loads it in a process of its own.

The engine writes to file descriptor 2; GGML_SCHED_DEBUG=2 makes it write the ops of its graphs too.
`python tests/llama_engine.py FILE n_ctx=512 flash=off` shows the report.
"""

import os
import re
import subprocess
import sys
from typing import NamedTuple

LOAD = """
import sys, time
import xllamacpp as engine
given = dict(pair.split("=") for pair in sys.argv[2:])
kinds = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
p = engine.CommonParams()
p.model.path, p.warmup, p.fit_params, p.n_parallel, p.verbosity, p.cpuparams.n_threads = sys.argv[1], False, False, 1, 5, 1
p.n_ctx, p.n_batch, p.n_ubatch = (int(given.pop(name, 512)) for name in ("n_ctx", "n_batch", "n_ubatch"))
p.flash_attn_type = getattr(engine.llama_flash_attn_type, "LLAMA_FLASH_ATTN_TYPE_" + {"on": "ENABLED", "off": "DISABLED"}[given.pop("flash", "on")])
p.cache_type_k = getattr(engine.ggml_type, "GGML_TYPE_" + kinds[given.pop("k", "f16")])
p.cache_type_v = getattr(engine.ggml_type, "GGML_TYPE_" + kinds[given.pop("v", "f16")])
p.load_mode = getattr(engine.llama_load_mode, "LLAMA_LOAD_MODE_" + {"on": "MMAP", "off": "NONE"}[given.pop("mmap", "on")])
p.no_extra_bufts = given.pop("repack", "on") == "off"
assert not given, given
server = engine.Server(p)
time.sleep(60)  # what it reports is written by a thread of its own
"""


class Node(NamedTuple):
    """An op that runs: its place in the graph, its kind and name, the names of what it reads."""

    index: int
    kind: str
    name: str
    reads: tuple[str, ...]


class Report(NamedTuple):
    """Sizes as the engine writes them, in MiB with two digits, by buffer; numbers of the last graph, and its ops."""

    model: dict[str, str]
    kv: str
    cells: int
    compute: str
    nodes: int
    splits: int
    ops: tuple[Node, ...]
    text: str


def load(path, **options):
    """The report of the engine that loads a file."""
    pairs = [f"{name}={value}" for name, value in options.items()]
    command, spoken = [sys.executable, "-c", LOAD, str(path), *pairs], []
    with subprocess.Popen(
        command, env={**os.environ, "GGML_SCHED_DEBUG": "2"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            spoken.append(line.decode(errors="replace"))
            if "graph: nodes" in spoken[-1]:
                break
        run.kill()
    return report_of(re.sub(r"(?<!\n)\d\.\d\d\.\d{3}\.\d{3} D ", "", "".join(spoken)))


def report_of(text):
    """The report in what the engine wrote."""
    sizes = re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", text)
    kv = re.findall(r"llama_kv_cache: size = +([\d.]+) MiB \( *(\d+) cells", text)
    compute = re.search(r"compute buffer size = +([\d.]+) MiB", text)
    graph = re.search(r"graph: nodes = (\d+), splits = (\d+)", text)
    if not (sizes and kv and compute and graph):
        raise RuntimeError(f"the engine did not load the model:\n{text[-3000:]}")
    last = text[: graph.start()].rpartition("reserving a graph")[2]
    found = re.finditer(r"node # *(\d+) \( *(\w+)\): +(.*?) \( *\d+[KM]\) .*?use=\d+,c=\d+:(.*)", last)
    ops = tuple(
        Node(int(m[1]), m[2], m[3], tuple(re.findall(r" *(\S.*?) \( *\d+[KM]\) \[[^]]*\]", m[4]))) for m in found
    )
    caches = " + ".join(size for size, _ in kv if len(kv) < 2 or size != "0.00")  # of windows the second
    return Report(dict(sizes), caches, int(kv[0][1]), compute[1], int(graph[1]), int(graph[2]), ops, text)


if __name__ == "__main__":
    report = load(sys.argv[1], **dict(pair.split("=") for pair in sys.argv[2:]))
    for node in report.ops:
        print(*node)
    print(report._replace(ops=(), text=""))
