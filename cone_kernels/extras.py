"""Packages that only some of the functions need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager


def require(package: str, extra: str, what: str) -> None:
    """Raises, with the command that installs it, where a package is missing; called before any work is done.

    Args:
        package: its import name.
        extra: the extra of this package that brings it.
        what: what needs it.

    Raises:
        ModuleNotFoundError: it is not installed.

    Examples:
        >>> require("pyarrow", "report", "Parquet")
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, extra, what)


@contextmanager
def explained(what: str, extra: str) -> Iterator[None]:
    """A block that imports torch and transformers: of one that is missing it says what `require` would.

    Examples:
        >>> with explained("cone_kernels.ConeProbe", "torch"):
        ...     import torch
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise _missing(error.name, extra, what) from None


def _missing(package: str, extra: str, what: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{package} is not installed; {what} needs it: pip install 'cone_kernels[{extra}]'", name=package
    )
