"""Runtimes: named policies that say how the ops of a graph become kernels, and when tensors are freed."""
