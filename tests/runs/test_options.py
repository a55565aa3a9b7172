"""The options of a run: one default for each wherever it is named, and what does not go together is refused."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from cone_kernels.corpora import Corpus
from cone_kernels.models import load_model
from cone_kernels.runs.options import (
    CORPUS_OPTIONS,
    DEFAULTS,
    LOAD_OPTIONS,
    RUN_OPTIONS,
    RunOptions,
    ShardOptions,
    options_by_model,
    refuse_unknown_options,
)
from cone_kernels.runs.runner import run


def test_every_keyword_of_an_experiment_has_a_default() -> None:
    assert set(DEFAULTS) == set(ShardOptions.__annotations__) - {"progress"}
    of_the_process = {"baseline", "log_json", "workers", "ray", "distributed", "overwrite"}
    groups = [set(CORPUS_OPTIONS), set(LOAD_OPTIONS), set(RUN_OPTIONS), of_the_process]
    assert set().union(*groups) == set(DEFAULTS)
    assert sum(map(len, groups)) == len(DEFAULTS)


def test_defaults_are_those_of_the_functions_that_take_them() -> None:
    of_corpus, of_load = (inspect.signature(function).parameters for function in (Corpus, load_model))
    loaded = [
        name for name in LOAD_OPTIONS if name not in ("tokenizer", "processor")
    ]  # of a model that is in memory already
    assert {name: of_load[name].default for name in loaded} == {name: DEFAULTS[name] for name in loaded}
    for name in CORPUS_OPTIONS:
        assert of_corpus["fields" if name == "field" else name].default == DEFAULTS[name], name
    assert set(loaded) == set(of_load) - {"path_or_hub_id"}


def test_the_run_takes_the_fields_of_its_options_alone() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'window'"):
        run(None, [], window=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"options: got window; they must be of limit, field, .*, shard$"):
        refuse_unknown_options({"window": 8, "limit": 3})


def test_options_do_not_change() -> None:
    options = RunOptions(shard="1/3", token_budget=10)
    assert options.process == (1, 3)
    assert RunOptions().process == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.threads = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_budget": 0}, "token_budget: got 0; it must be at least 1"),
        ({"token_budget": "all"}, "token_budget: got 'all'; it must be a number, \"auto\" or None"),
        ({"token_budget": "auto", "shard": "0/2"}, "token_budget: got 'auto' with shard '0/2'; it must be a number"),
        ({"batch_size": -1}, "batch_size: got -1; it must be at least 1"),
        ({"shard_size": 0}, "shard_size: got 0; it must be at least 1"),
        ({"threads": 0}, "threads: got 0; it must be at least 1"),
        ({"shard": "3/3"}, "shard: got '3/3'; it must be i/n with i from 0 to n - 1"),
        ({"checkpoint_every": -1}, "checkpoint_every: got -1; it must be 0 or more seconds"),
        ({"resume": True}, "resume: got True without a checkpoint"),
        ({"poolings": ["median"]}, "pooling: got 'median'; each must be one of mean, "),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        RunOptions(**options)


def test_each_model_has_a_checkpoint_of_its_own() -> None:
    given: Any = {"limit": 3, "checkpoint": "c", "threads": 2}
    assert options_by_model(given, 1) == [{"checkpoint": "c", "threads": 2}]
    assert options_by_model(given, 2) == [{"checkpoint": f"c.model-{number}", "threads": 2} for number in range(2)]
