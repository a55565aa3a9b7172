from __future__ import annotations

import torch
from torch import Tensor

from cone_kernels.state.pending_rows import PendingRows


def all_used(rows: Tensor) -> Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool)


def test_before_the_first_rows_there_is_no_run() -> None:
    pending = PendingRows(3)
    assert list(pending.runs()) == []
    pending.extend(slice(None), torch.empty(3, 0, 2), torch.empty(3, 0, dtype=torch.bool), "auto")
    assert list(pending.runs()) == []
    for n in (5, 7):
        rows, use = torch.empty(3, n, 2, device="meta"), torch.empty(3, n, dtype=torch.bool, device="meta")
        pending.extend(slice(None), rows, use, "auto")
    (run,) = pending.runs()
    rows, use = pending.waiting(run)
    assert (rows.shape, rows.device.type, use.shape, use.device.type) == ((3, 12, 2), "meta", (3, 12), "meta")


def test_whole_blocks_are_taken_in_order_of_arrival() -> None:
    pending, x = PendingRows(2), torch.arange(2400.0).view(2, 600, 2)
    pending.extend(slice(None), x[:, :100], (torch.arange(100) < 50).expand(2, 100), "auto")
    assert list(pending.full_runs(slice(None))) == []
    pending.extend(slice(None), x[:, 100:], all_used(x[:, 100:]), "cpu")
    (run,) = pending.full_runs(slice(None))
    rows, use = pending.take_blocks(run)
    assert torch.equal(rows, x[:, :512])
    assert use.sum(1).tolist() == [462, 462]
    assert torch.equal(pending.waiting(run)[0], x[:, 512:])
    assert list(pending.full_runs(slice(None))) == []
    pending.extend(slice(None), x[:, :424], all_used(x[:, :424]), "cpu")
    assert torch.equal(pending.take_blocks(run)[0], torch.cat([x[:, 512:], x[:, :424]], 1))
    assert list(pending.runs()) == []


def test_layers_that_came_apart_are_given_out_apart() -> None:
    """As a probe sees them, some layers at a time, and another number of them in the next batch."""
    pending, x = PendingRows(5), torch.randn(5, 9, 3)
    pending.extend(slice(0, 3), x[:3, :4], all_used(x[:3, :4]), "auto")
    pending.extend(slice(3, 5), x[3:, :4], all_used(x[3:, :4]), "auto")
    assert list(pending.runs()) == [slice(0, 3), slice(3, 5)]
    pending.extend(slice(0, 2), x[:2, 4:], all_used(x[:2, 4:]), "auto")
    assert list(pending.runs()) == [slice(0, 2), slice(2, 3), slice(3, 5)]
    assert list(pending.runs(slice(1, 4), least=9)) == [slice(1, 2)]
    pending.extend(slice(2, 5), x[2:, 4:], all_used(x[2:, 4:]), "auto")
    for run in (slice(0, 2), slice(2, 3), slice(3, 5)):
        assert torch.equal(pending.waiting(run)[0], x[run])


def test_a_single_row_waits_too() -> None:
    pending, x = PendingRows(1), torch.ones(1, 1, 2)
    pending.extend(slice(None), x, all_used(x), "auto")
    assert list(pending.runs()) == [slice(0, 1)]
    assert torch.equal(pending.waiting(slice(0, 1))[0], x)


def test_layers_of_which_nothing_waits_go_on_together() -> None:
    pending, x = PendingRows(3), torch.ones(3, 512, 2)
    for at in (slice(0, 2), slice(2, 3)):
        pending.extend(at, x[at], all_used(x[at]), "auto")
        (run,) = pending.full_runs(at)
        pending.take_blocks(run)
    pending.extend(slice(None), x[:, :4], all_used(x[:, :4]), "auto")
    assert list(pending.runs()) == [slice(0, 3)]


def test_what_waits_is_a_copy() -> None:
    pending, x = PendingRows(1), torch.ones(1, 4, 2)
    pending.extend(slice(None), x, all_used(x), "auto")
    x.zero_()
    assert bool(pending.waiting(slice(0, 1))[0].eq(1).all())
