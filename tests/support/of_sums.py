"""What of a layer's JSON its sums alone tell, so that a saved state gives it again."""

from __future__ import annotations

from typing import Any


def of_sums(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a layer, or of the output, but for what needs the sentences once more."""
    return {name: value for name, value in row.items() if not name.startswith("anisotropy_without_rogue")}
