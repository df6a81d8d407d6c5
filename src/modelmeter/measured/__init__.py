"""Measured: published figures, and what a model says of the same."""
