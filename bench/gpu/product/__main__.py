"""Every command that runs a model, every integration and every example on a device, against the CPU.

python -m bench.gpu.product [--device cuda] [CASE ...]

The models, BERTs with random weights, and the corpus are written on the spot. A case is `ok` where the largest relative
difference of all its numbers is within its tolerance (bench/gpu/product/differences.py), `refused` where this machine
cannot do it and the error says so as documented, `not installed` without a package that it needs, and otherwise
`failed`, `not finished` within its limit or `not run`. With `--device cpu` it is tried where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.gpu.process import end_with_children, write_aside

LIMIT_SECONDS = 1800.0  # of all cases on a machine of few cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=1, help="cases side by side (default %(default)s)")
    # For the processes that this one starts.
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from bench.gpu.product.case import Place, run_case
    from bench.gpu.product.cases import cases
    from bench.gpu.product.stage import BACKENDS_FILE, CASE_SECONDS, run_product

    known = cases(arguments.device)
    unknown = [name for name in arguments.cases if name not in known]
    if unknown:
        parser.error(f"CASE: got {unknown[0]!r}; it must be one of {', '.join(known)}")
    if arguments.make is not None:
        Place.made(arguments.make)
        asked = {name: case.backend for name, case in known.items()}
        write_aside(arguments.make / BACKENDS_FILE, json.dumps(asked))
        return 0
    if arguments.out is not None:
        found = run_case(known[arguments.cases[0]], Place.at(arguments.place), arguments.device)
        write_aside(arguments.out, json.dumps(found))
        return 0

    end_with_children()
    result = run_product(
        arguments.device, LIMIT_SECONDS, arguments.processes, names=arguments.cases, case_seconds=4 * CASE_SECONDS
    )
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
