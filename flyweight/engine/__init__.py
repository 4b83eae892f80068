"""Runs a model on our own C++ kernels, without PyTorch: a spec and tensors become a flat program.

`compile` writes the program, `_native` (csrc/) executes it, `runtime` is what talks.
"""
