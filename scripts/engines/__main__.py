"""Asks engines and writes what they say beside ours into the docs: python scripts/engines [ENGINE ...]

An engine is a module of this folder with a function `ask`; none named are all.
"""

import sys
from importlib import import_module

ENGINES = ("llama_cpp", "parallel", "torch_cpu", "inductor", "openvino_cpu")

if __name__ == "__main__":
    sys.path.insert(0, "tests")
    for engine in sys.argv[1:] or ENGINES:
        if engine not in ENGINES:
            sys.exit(f"unknown engine {engine!r}; engines: {', '.join(ENGINES)}")
        print(f"{engine}: {import_module(engine).ask()}")
