"""Hidden states of a running model, read by hooks and added to a state."""

from cone_kernels.probe.cone_probe import ConeProbe

__all__ = ["ConeProbe"]
