from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from cone_kernels import _cpu
from tests.support.places import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_extension_neither_imports_nor_links_torch() -> None:
    code = "import sys, cone_kernels._cpu; print('torch' in sys.modules, 'libtorch' in open('/proc/self/maps').read())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_torch_and_the_extension_share_one_openmp() -> None:
    code = (
        "import torch, cone_kernels._cpu\n"
        "lines = [line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line]\n"
        "print(len(set(lines)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"


def test_a_wheel_asks_for_nothing_that_torch_and_the_system_do_not_have() -> None:
    """auditwheel leaves out libgomp.so.1, for torch has it; so it may ask for no newer OpenMP than torch's has."""
    read = ["readelf", "--wide", "--dynamic", "--version-info", _cpu.__file__]
    told = subprocess.run(read, capture_output=True, text=True, check=True).stdout
    of_every_system = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "libstdc++.so.6"}
    needed = {name for name in re.findall(r"Shared library: \[(.*)\]", told) if not name.startswith("ld-linux")}
    assert needed - of_every_system == {"libgomp.so.1"}
    assert set(re.findall(r"\bGOMP_[\d.]+", told)) <= {"GOMP_1.0", "GOMP_2.0", "GOMP_3.0", "GOMP_4.0", "GOMP_4.5"}


def test_wheels_are_built_for_every_python_that_is_named() -> None:
    project, wheels = (PROJECT[key] for key in ("project", "tool"))
    named = re.findall(r":: (3\.\d+)$", "\n".join(project["classifiers"]), flags=re.MULTILINE)
    assert [f"3.{minor}" for minor in re.findall(r"cp3(\d+)-", wheels["cibuildwheel"]["build"])] == named
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())
    matrix = workflow["jobs"]["wheel"]["strategy"]["matrix"]
    assert [f"{name}-*" for name in matrix["python"]] == wheels["cibuildwheel"]["build"].split()
    assert {f"manylinux-{machine}-image" for machine in matrix["machine"]} <= set(wheels["cibuildwheel"]["linux"])


def test_the_conda_recipe_asks_for_what_pip_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    project, wanted = PROJECT["project"], recipe["requirements"]
    (torch,) = project["optional-dependencies"]["torch"]
    asked = {line.replace(">=", " >=") for line in (*project["dependencies"], f"py{torch}")}
    assert asked == set(wanted["run"]) - {"python"}
    build = {line.replace(">=", " >=") for line in PROJECT["build-system"]["requires"]}
    assert build == set(wanted["host"]) - {"pip", "python"}
    assert recipe["context"]["version"] == project["version"]
    (script,) = recipe["build"]["python"]["entry_points"]
    assert dict([script.split(" = ")]) == project["scripts"]


def test_setup_imports_no_torch() -> None:
    assert "torch" not in {line.split()[1] for line in imports(ROOT / "setup.py")}


def imports(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line for line in lines if line.startswith(("import ", "from "))]


@pytest.mark.slow
def test_installs_where_there_is_no_torch_and_no_nvcc(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    environment = {**os.environ, "CONE_CUDA": "0"}
    environment.pop("PYTHONPATH", None)
    install = [python, "-m", "pip", "install", "--quiet", str(ROOT)]
    subprocess.run(install, check=True, env=environment, cwd=tmp_path)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *command], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )

    imported = run("-c", "import cone_kernels, cone_kernels._cpu as c, sys; print(c.supported_isas()[0])")
    assert imported.stdout.strip() == "baseline", imported.stderr
    code = (
        "import pathlib, cone_kernels as c; print(*sorted(p.name for p in pathlib.Path(c.__file__).parent.glob('*.*')))"
    )
    assert {"_cpu.pyi", "_cuda.pyi", "py.typed"} <= set(run("-c", code).stdout.split())
    assert run("-m", "cone_kernels", "--help").returncode == 0
    doctor = run("-m", "cone_kernels", "doctor")
    assert doctor.returncode == 0, doctor.stderr
    told = " ".join(doctor.stdout.split())
    assert "torch is not installed" in told
    assert "cone_kernels._cuda is not built (there was no nvcc, or CONE_CUDA=0 was set)" in told
    missing = run("-c", "from cone_kernels import ConeProbe")
    said = "torch is not installed; cone_kernels.ConeProbe needs it: pip install 'cone_kernels[torch]'"
    assert missing.stderr.rstrip().endswith(said)
    layers = run("-m", "cone_kernels", "layers", "--model", "m", "--corpus", "c")
    said = "Error: torch is not installed; this command needs it: pip install 'cone_kernels[hf]'\n"
    assert (layers.returncode, layers.stderr) == (1, said)
