"""Layers made into a checked graph: equations over named axes, ops, placed layers."""
