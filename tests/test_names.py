"""Every list of names against what bears the names: whoever adds one side and forgets the other fails here."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import cone_kernels
from cone_kernels import experiments, metrics
from cone_kernels.cli import main
from cone_kernels.cli.group import COMMANDS
from cone_kernels.corpora import corpus
from cone_kernels.experiments.result import ExperimentResult
from cone_kernels.names import (
    EXPERIMENTS,
    FORMATS,
    GEOMETRY,
    METHODS,
    POOLINGS,
    TEXT_FORMATS,
    VECTOR_FORMATS,
    CenteringMethod,
    Format,
    VectorFormat,
    experiments_in_run,
    is_share,
    label_of,
)
from cone_kernels.report.tables import TABLES
from cone_kernels.state import poolings
from cone_kernels.vector_files import formats

PACKAGES = sorted(path.parent for path in Path(cone_kernels.__file__).parent.rglob("__init__.py"))
CALLED = [name for name, about in EXPERIMENTS.items() if about.function == name]


def test_every_pooling_has_words_and_a_pooler() -> None:
    assert {"mean", *poolings._POOLERS} == set(POOLINGS)


def test_every_metric_of_the_geometry_has_words_and_a_value() -> None:
    assert [field.name for field in fields(metrics.Geometry)] == [*GEOMETRY, "population"]


def test_every_method_of_centring_is_one_that_type_checkers_know() -> None:
    assert tuple(METHODS) == get_args(CenteringMethod)


def test_every_format_of_a_corpus_has_words_and_a_reader() -> None:
    assert tuple(FORMATS) == get_args(Format)
    assert {*FORMATS, "dataset", "image"} == set(corpus._READERS)
    assert set(TEXT_FORMATS) < set(FORMATS)


def test_every_format_of_vectors_has_endings_of_its_own_and_a_reader() -> None:
    assert tuple(VECTOR_FORMATS) == get_args(VectorFormat)
    assert set(VECTOR_FORMATS) == set(formats.FORMATS)
    endings = [ending for about in VECTOR_FORMATS.values() for ending in about.endings]
    assert len(set(endings)) == len(endings)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_its_function_result_command_and_tables(name: str) -> None:
    about = EXPERIMENTS[name]
    module = import_module(f"cone_kernels.experiments.{name}")
    results = import_module(f"{module.__name__}_result") if find_spec(f"{module.__name__}_result") else module
    assert results.SCHEMA.startswith(f"cone_kernels/{name}/")
    function = vars(module)[about.function]
    result = getattr(results, inspect.signature(function).return_annotation)
    assert issubclass(result, ExperimentResult)
    assert about.function in experiments.__all__
    assert result.__name__ in experiments.__all__
    assert getattr(experiments, result.__name__) is result
    assert about.command in COMMANDS
    assert main.get_command(main.make_context("cone", ["--help"], resilient_parsing=True), about.command) is not None
    assert callable(TABLES[name])
    if about.in_run == "each model":
        assert callable(vars(module)[f"{name}_of"])


def test_nothing_that_looks_like_an_experiment_is_missing_in_the_names() -> None:
    functions = {name for name in experiments.__all__ if name.islower()}
    assert functions == {"measure", "run", *(about.function for about in EXPERIMENTS.values())}
    tables = {path.stem for path in (PACKAGES[0] / "report" / "tables").glob("*.py")}
    # What labelled pairs say is a part of centring and of a run.
    assert tables - {"__init__", "quality"} == set(EXPERIMENTS)


def test_a_run_makes_its_experiments_in_the_order_of_the_report() -> None:
    known = ["layers", "pooling", "axis", "rotation", "centering"]
    assert [name for name in experiments_in_run() if name in known] == known
    assert [name for name in experiments_in_run("each model") if name in known] == known[:3]
    assert "compare" not in experiments_in_run()


def test_names_of_another_version_are_shown_in_plain_words() -> None:
    assert label_of(POOLINGS, "first_four") == "first four"
    assert not is_share("spread_of_norms")


def test_the_names_load_neither_torch_nor_what_reads_a_corpus() -> None:
    heavy = {"torch", "transformers", "numpy", "cone_kernels.corpora"}
    code = f"import sys, cone_kernels.names; print({heavy} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()"


# Integrations need their frameworks, and triton a GPU or its interpreter.
LOADABLE = [path for path in PACKAGES if path.name not in ("integrations", "triton")]


@pytest.mark.parametrize("folder", LOADABLE, ids=lambda path: path.name)
def test_no_public_name_of_a_package_hides_a_module_of_it(folder: Path) -> None:
    parts = folder.relative_to(PACKAGES[0].parent).parts
    package = import_module(".".join(parts))
    modules = [path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    found = {name: getattr(package, name, None) for name in modules if not name.startswith("_")}
    assert [name for name, value in found.items() if value is not None and not isinstance(value, ModuleType)] == []


@pytest.mark.parametrize("name", [*CALLED, "run"])
def test_an_experiment_is_a_module_and_is_called_as_its_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"cone_kernels.experiments.{name}")
    function = vars(module)[name]
    assert isinstance(module, ModuleType)
    assert inspect.isfunction(function)
    assert getattr(experiments, name) is module is sys.modules[module.__name__]
    assert callable(module)
    assert inspect.signature(module) == inspect.signature(function)
    assert inspect.getdoc(module) == inspect.getdoc(function)
    assert "Raises:" in pydoc.render_doc(module)
    monkeypatch.setattr(module, name, lambda *args, **keywords: (args, keywords))
    assert module(1, k=2) == ((1,), {"k": 2})
