"""Without its library each integration says what to install."""

from __future__ import annotations

import subprocess
import sys

PACKAGES = {
    "trainer": "transformers",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "sentence_transformers": "sentence_transformers",
    "sentence_transformers_evaluator": "sentence_transformers",
}
_SCRIPT = """
import importlib, sys
for name in ("transformers", "lightning", "pytorch_lightning", "torchmetrics", "sentence_transformers"):
    sys.modules[name] = None  # as where the package is not installed
for module in sys.argv[1:]:
    try:
        importlib.import_module("cone_kernels.integrations." + module)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_the_extra_is_named() -> None:
    command = [sys.executable, "-c", _SCRIPT, *PACKAGES]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, package in zip(lines, PACKAGES.values(), strict=True):
        assert line.startswith(f"{package} is not installed; ")
        assert line.endswith("pip install 'cone_kernels[train]'")
