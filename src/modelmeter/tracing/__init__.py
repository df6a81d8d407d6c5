"""Tracing: any torch module run once with symbolic sizes becomes a graph that every runtime, sweep and formula takes.

`trace(module, ...)` gives a model; `save` writes it as JSON, which `load_model` reads without torch. What it relies on
of torch's private parts is in `capture.py` and `known.py`. Start with docs/tracing.md.
"""
