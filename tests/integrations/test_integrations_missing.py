"""Without its library each integration says what to install."""

from __future__ import annotations

from pathlib import Path

from tests.support.forked import run_python

PACKAGES = {
    "trainer": "transformers",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "sentence_transformers": "sentence_transformers",
    "sentence_transformers_evaluator": "sentence_transformers",
}
_SCRIPT = """
import importlib, sys
missing = ("transformers", "lightning", "pytorch_lightning", "torchmetrics", "sentence_transformers")
for name in [name for name in sys.modules if name.partition(".")[0] in (*missing, "cone_kernels")]:
    del sys.modules[name]  # what a forked process has imported before
for name in missing:
    sys.modules[name] = None  # as where the package is not installed
for module in sys.argv[1:]:
    try:
        importlib.import_module("cone_kernels.integrations." + module)
    except ModuleNotFoundError as error:
        print(error)
"""


def test_the_extra_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    done = run_python(script, *PACKAGES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line, package in zip(lines, PACKAGES.values(), strict=True):
        assert line.startswith(f"{package} is not installed; ")
        assert line.endswith("pip install 'cone_kernels[train]'")
