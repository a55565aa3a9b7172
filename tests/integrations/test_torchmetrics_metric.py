"""MeanPairwiseCosine against the plain formula, through torchmetrics' own mechanisms."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.wrappers import BootStrapper

from cone_kernels import metrics
from cone_kernels.integrations.torchmetrics import MeanPairwiseCosine
from cone_kernels.state.moments import Moments
from tests.support.gloo_ranks import run_ranks
from tests.support.recording_probe import plain_anisotropy

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 24


def rows(n: int = 90, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, DIM, generator=generator, dtype=torch.float64) + 0.4).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_update_and_compute(dtype: torch.dtype) -> None:
    metric = MeanPairwiseCosine(DIM)
    x = rows(dtype=dtype)
    for part in x.split(37):
        metric.update(part)
    assert metric.compute().dtype == torch.float64
    assert abs(float(metric.compute()) - plain_anisotropy(x)) < 1e-6
    moments = Moments.empty("sentence", [0], DIM)
    moments.update(x)
    assert float(metric.stderr()) == pytest.approx(float(metrics.anisotropy_stderr(moments)[0]), rel=1e-5)


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    metric = MeanPairwiseCosine(DIM)
    for part in rows().split(37):
        assert abs(float(metric(part)) - plain_anisotropy(part)) < 1e-6
    assert abs(float(metric.compute()) - plain_anisotropy(rows())) < 1e-6


def test_reset_and_too_few_rows() -> None:
    metric = MeanPairwiseCosine(DIM)
    metric.update(rows())
    metric.reset()
    assert int(metric.count.sum()) == 0
    metric.update(rows()[:1])
    assert metric.compute().isnan()


def test_rows_left_out_are_counted() -> None:
    x = rows(10)
    x[3] = 0
    x[7, 2] = torch.inf
    metric = MeanPairwiseCosine(DIM)
    metric.update(x)
    assert (int(metric.count.sum()), int(metric.n_zero.sum()), int(metric.n_nonfinite.sum())) == (8, 1, 1)
    kept = torch.tensor([row not in (3, 7) for row in range(10)])
    assert abs(float(metric.compute()) - plain_anisotropy(x[kept])) < 1e-6


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.metric = MeanPairwiseCosine(DIM)


@pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.float(),
        lambda module: module.to("cpu", torch.float16),
        lambda module: module.bfloat16(),
    ],
)
def test_states_stay_float64_when_the_module_is_cast(cast: Callable[[Holder], Holder]) -> None:
    holder = Holder()
    holder.metric.update(rows())
    wanted = holder.metric.unit_sum.clone()
    holder = cast(holder)
    assert holder.metric.unit_sum.dtype == torch.float64
    assert holder.metric.count.dtype == torch.int64
    assert torch.equal(holder.metric.unit_sum, wanted)
    holder.metric.reset()
    assert holder.metric.unit_sum.dtype == torch.float64
    holder.metric.update(rows().to(torch.bfloat16))
    assert abs(float(holder.metric.compute()) - plain_anisotropy(rows().to(torch.bfloat16))) < 1e-6


def test_set_dtype_keeps_float64_and_device_is_followed() -> None:
    metric = MeanPairwiseCosine(DIM).set_dtype(torch.float16)
    assert metric.unit_sum.dtype == torch.float64
    metric = metric.to("meta")
    assert metric.unit_sum.device.type == metric.device.type == "meta"


def test_pickle_and_state_dict() -> None:
    metric = MeanPairwiseCosine(DIM)
    metric.update(rows())
    copy = pickle.loads(pickle.dumps(metric))
    copy.update(rows(seed=1))
    both = torch.cat([rows(), rows(seed=1)])
    assert abs(float(copy.compute()) - plain_anisotropy(both)) < 1e-6
    metric.persistent(True)
    other = MeanPairwiseCosine(DIM)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.unit_sum, metric.unit_sum)


def test_merge_state() -> None:
    first, second = MeanPairwiseCosine(DIM), MeanPairwiseCosine(DIM)
    first.update(rows())
    second.update(rows(seed=1))
    first.merge_state(second)
    assert abs(float(first.compute()) - plain_anisotropy(torch.cat([rows(), rows(seed=1)]))) < 1e-6


def test_plot() -> None:
    mpl.use("Agg")
    metric = MeanPairwiseCosine(DIM)
    values = [metric(part) for part in rows().split(37)]
    figure, axes = metric.plot(values)
    assert axes.lines[0].get_ydata() == pytest.approx([float(value) for value in values])
    mpl.pyplot.close(figure)


def test_collection_tracker_and_bootstrap() -> None:
    collection = MetricCollection({"cone": MeanPairwiseCosine(DIM)}, prefix="val_")
    collection.update(rows())
    assert abs(float(collection.compute()["val_cone"]) - plain_anisotropy(rows())) < 1e-6
    tracker = MetricTracker(MeanPairwiseCosine(DIM), maximize=False)
    for seed in (0, 1):
        tracker.increment()
        tracker.update(rows(seed=seed))
    wanted = [plain_anisotropy(rows(seed=seed)) for seed in (0, 1)]
    assert tracker.compute_all().tolist() == pytest.approx(wanted, abs=1e-6)
    assert tracker.best_metric() == pytest.approx(min(wanted), abs=1e-6)
    bootstrap = BootStrapper(MeanPairwiseCosine(DIM), num_bootstraps=4, mean=True)
    bootstrap.update(rows())
    assert abs(float(bootstrap.compute()["mean"]) - wanted[0]) < 0.1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MeanPairwiseCosine(0), ValueError, "dim: got 0"),
        (lambda: MeanPairwiseCosine(DIM).update(torch.zeros(3, DIM + 1)), ValueError, r"x: got shape \(3, 25\)"),
        (lambda: MeanPairwiseCosine(DIM).update(torch.zeros(3, DIM).long()), TypeError, "x"),
        (lambda: MeanPairwiseCosine(DIM).update(rows(3), torch.tensor([1, 2])), ValueError, "sentence_ids"),
    ],
)
def test_arguments_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def synced(sync_on_step: bool) -> tuple[float, float, int, list[float]]:
    metric = MeanPairwiseCosine(DIM, dist_sync_on_step=sync_on_step)
    parts = rows().split(45)[dist.get_rank()].split(30)
    steps = [float(metric(part)) for part in parts]
    whole = float(metric.compute())
    with metric.sync_context():
        n = int(metric.count.sum())
    assert int(metric.count.sum()) == 45  # the rank's own again
    return whole, float(plain_anisotropy(rows())), n, steps


@pytest.mark.parametrize("sync_on_step", [False, True])
def test_two_ranks_sum_their_states(sync_on_step: bool) -> None:
    answers = run_ranks(synced, 2, sync_on_step)
    for whole, wanted, n, _ in answers:
        assert abs(whole - wanted) < 1e-6
        assert n == 90
    assert (answers[0][3] == answers[1][3]) == sync_on_step


@pytest.mark.parametrize("sync_on_step", [False, True])
@pytest.mark.parametrize("size", [1, 16, 37])
def test_forward_numbers_rows_on(size: int, sync_on_step: bool) -> None:
    """Groups, and so errors, are those of rows that came at once."""
    whole = MeanPairwiseCosine(DIM)
    whole.update(rows())
    metric = MeanPairwiseCosine(DIM, dist_sync_on_step=sync_on_step)
    for part in rows().split(size):
        metric(part)
    assert torch.equal(metric.count, whole.count)
    assert float(metric.stderr()) == pytest.approx(float(whole.stderr()), rel=1e-6)
    metric.reset()
    metric(rows()[:20], torch.arange(20) + 64)
    other = MeanPairwiseCosine(DIM)
    other.update(rows()[:20], torch.arange(20) + 64)
    assert torch.equal(metric.count, other.count)


def test_the_error_after_forwards_is_that_of_the_mean() -> None:
    """Of 150 data sets in batches of 32: the errors are those that the values have."""
    values, errors = [], []
    for seed in range(150):
        metric = MeanPairwiseCosine(4)
        generator = torch.Generator().manual_seed(seed)
        for part in (torch.randn(256, 4, generator=generator) + 0.5).split(32):
            metric(part)
        values.append(metric.compute())
        errors.append(metric.stderr())
    ratio = float(torch.stack(errors).square().mean().sqrt() / torch.stack(values).std())
    assert 0.85 < ratio < 1.15
