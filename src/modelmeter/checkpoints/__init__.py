"""Checkpoints: files of weights, predicted from a model (`layout.py`), read and compared with one (`inspect.py`)."""
