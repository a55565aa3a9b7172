"""Condenses what pytest-benchmark saved into the few figures that are kept under bench/results/.

python bench/summarize.py bench/results/latest.json bench/results/cpu-NAME.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(source: str, target: str) -> None:
    """Writes the machine, the versions, and each benchmark's figures and median time."""
    saved = json.loads(Path(source).read_text())
    machine = saved["machine_info"]
    kept = ("python_version", "system", "machine", "isa", "threads", "torch")
    summary = {
        "date": saved["datetime"][:10],
        "commit": saved["commit_info"]["id"],
        "processor": machine["cpu"].get("brand_raw"),
        **{key: machine[key] for key in kept},
        "benchmarks": {
            entry["fullname"]: entry["extra_info"] | {"median_seconds": entry["stats"]["median"]}
            for entry in saved["benchmarks"]
        },
    }
    Path(target).write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
