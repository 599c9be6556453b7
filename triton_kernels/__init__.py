"""Triton kernels and their launchers: tensors in, tensors out, nothing of autograd.

One file per op. Importing this package imports neither Triton nor a device runtime; importing one of its modules does.
"""
