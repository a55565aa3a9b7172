"""Every command that runs a model, every integration and every example on a device, against the CPU.

python -m bench.gpu.product [--device cuda] [CASE ...]

The models, BERTs with random weights, and the corpus are written on the spot. A case is `ok` where the largest relative
difference of all its numbers is within its tolerance (bench/gpu/product/differences.py), `refused` where this machine
cannot do it and the error says so as documented, `not installed` without a package that it needs, and otherwise
`failed`, `not finished` within its limit or `not run`. With `--device cpu` it is tried where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.gpu.process import end_with_children
from bench.gpu.product.stage import CASE_SECONDS, run_product

LIMIT_SECONDS = 1800.0  # of all cases on a machine of few cores


def main() -> int:
    start = time.perf_counter()  # the imports below take their share of the limit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=1, help="cases side by side (default %(default)s)")
    # For the process that this one starts.
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--case-seconds", type=float, default=4 * CASE_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from bench.gpu.product.cases import cases
    from bench.gpu.product.each_case import run_each_case

    known = cases(arguments.device)
    unknown = [name for name in arguments.cases if name not in known]
    if unknown:
        parser.error(f"CASE: got {unknown[0]!r}; it must be one of {', '.join(known)}")
    limits = {"limit": arguments.limit - (time.perf_counter() - start), "case_seconds": arguments.case_seconds}
    if arguments.place is not None:
        asked = {name: known[name] for name in arguments.cases or known}
        here = {name: case for name, case in asked.items() if case.backend not in arguments.without}
        run_each_case(here, arguments.place, arguments.device, processes=arguments.processes, **limits)
        return 0

    end_with_children()
    result = run_product(
        arguments.device,
        processes=arguments.processes,
        names=arguments.cases,
        without=arguments.without,
        **limits,
    )
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
