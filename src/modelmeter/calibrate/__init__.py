"""Calibration: a user's own machine measured in about a minute, and its laws of time written as a device's YAML.

`run.py` puts it together: kernels as torch runs them (`kernels.py`), how they are timed (`timing.py`), the constants of
the laws of `seconds/processor.py` (`fits.py`), what launching takes (`host.py`). It needs torch and transformers.
"""
