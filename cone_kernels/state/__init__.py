"""The mergeable state: plain sums in float64 by layer and level, and what they are saved and checked as."""

from cone_kernels.state.cone_state import ConeState
from cone_kernels.state.moments import Moments

__all__ = ["ConeState", "Moments"]
