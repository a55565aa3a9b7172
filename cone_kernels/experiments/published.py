"""Curves that others published, to compare one's own with."""

from __future__ import annotations

from typing import Any

# One blog post; sentence level, layers 0 to 24.
MXBAI_EMBED_LARGE: dict[str, Any] = {
    "model": "mxbai-embed-large-v1",
    "sentences": 300,
    "source": "a published measurement of mxbai-embed-large-v1 on 300 sentences of SNLI",
    "anisotropy": (
        *(0.626, 0.795, 0.834, 0.881, 0.856, 0.795, 0.702, 0.814, 0.848, 0.900, 0.913, 0.923, 0.924),
        *(0.909, 0.851, 0.814, 0.876, 0.870, 0.840, 0.815, 0.792, 0.748, 0.723, 0.672, 0.417),
    ),
}
