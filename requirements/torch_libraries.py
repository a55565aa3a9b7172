"""Prints what the installed torch asks for beyond the locks: the CUDA libraries of a build for GPUs."""

from importlib.metadata import requires

print("\n".join(line for line in requires("torch") or [] if line.startswith(("cuda-", "nvidia-"))))
