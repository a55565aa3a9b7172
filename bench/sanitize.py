"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

Builds `_cpu` with both in a copy of the package and runs the tests named there, or those of all ops. A read past the
end of an input, an overflow or a misaligned address ends the tests with a report. Leaks are not looked for: Python
keeps memory until it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")


def main() -> int:
    """Builds, runs the tests, and returns their exit status."""
    tests = sys.argv[1:] or ["tests/ops"]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("cone_kernels", "csrc", "tests", "bench"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        for file in ("pyproject.toml", "setup.py", "README.md"):
            shutil.copy(ROOT / file, copy)
        environment = {**os.environ, "CONE_CUDA": "0", "CONE_ISAS": "native", "PYTHONPATH": str(copy)}
        flags = {"CFLAGS": FLAGS, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, env=environment | flags, check=True)
        # The interpreter has none of them, so they must be there before it loads the extension.
        preloaded = " ".join(_library(name) for name in LIBRARIES)
        environment |= {
            "LD_PRELOAD": preloaded,
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        return subprocess.run(command, cwd=copy, env=environment, check=False).returncode


def _library(name: str) -> str:
    compiler = os.environ.get("CC", "gcc")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
