"""The version of torch_jvpvjp, in the one place that the build and the package read it from."""

__version__ = "0.4.0"
