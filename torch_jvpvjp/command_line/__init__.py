"""The commands of ``python -m torch_jvpvjp`` that are not part of another package."""
