"""Calibration: a user's own machine measured in a minute, and its laws of time written as a device's YAML.

`run.py` puts it together: kernels as torch runs them (`kernels.py`), in which order and how often (`timing.py`), what
launching takes (`host.py`). Of a processor: the constants of the laws of `seconds/processor.py` (`fits.py`), and those
that llama.cpp tells (`llama_cpp.py`). Of a GPU: how kernels are timed (`graphics.py`), its datasheet (`facts.py`), the
constants of the laws of all GPUs (`gpu.py`). It needs torch and transformers.
"""
