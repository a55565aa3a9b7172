"""`python -m cone_kernels` is the command `cone`."""

from __future__ import annotations

from cone_kernels.cli import main

if __name__ == "__main__":
    main(prog_name="cone")
