"""The models, one folder each; what they share is in `model.py`."""
