"""Reports of small runs without their figures, which take most of the time and have tests of their own."""

from __future__ import annotations

# What the report calls for each figure, and what stands there in its place.
DRAWN_BY = "cone_kernels.report._draw_both"


def undrawn(panel: object, prefix: str) -> str:
    """An empty figure."""
    return "<figure></figure>"
