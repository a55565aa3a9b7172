"""Packages that only some of the functions need."""

from __future__ import annotations

import importlib.util


def require(package: str, extra: str, what: str) -> None:
    """Raises, with the command that installs it, where a package is missing; called before any work is done.

    Args:
        package: its import name.
        extra: the extra of this package that brings it.
        what: what needs it.

    Raises:
        ModuleNotFoundError: it is not installed.

    Example:
        >>> require("pyarrow", "report", "Parquet")
    """
    if importlib.util.find_spec(package) is None:
        message = f"{package} is not installed; {what} needs it: pip install 'cone_kernels[{extra}]'"
        raise ModuleNotFoundError(message, name=package)
