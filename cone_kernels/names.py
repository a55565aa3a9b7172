"""The names of the poolings, apart from what computes them: the command line lists them without loading torch."""

from __future__ import annotations

from collections.abc import Sequence

POOLINGS = ("mean", "mean_without_special", "cls", "last", "max", "weighted_mean")


def pooling_names(poolings: str | Sequence[str]) -> tuple[str, ...]:
    """The names in the order of `POOLINGS`; "all" stands for all of them.

    Raises:
        ValueError: a name is unknown, or given twice.

    Example:
        >>> pooling_names(["max", "mean"])
        ('mean', 'max')
    """
    given = [poolings] if isinstance(poolings, str) else list(poolings)
    if given == ["all"]:
        return POOLINGS
    unknown = [name for name in given if name not in POOLINGS]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ValueError(f'pooling: got {listed}; each must be one of {", ".join(POOLINGS)}, or "all" alone')
    if len(set(given)) != len(given):
        raise ValueError(f"pooling: got {', '.join(given)}; each must be named once")
    return tuple(name for name in POOLINGS if name in given)
