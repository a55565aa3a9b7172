from __future__ import annotations

import torch

from cone_kernels.state.pending_rows import PendingRows


def test_asked_before_the_first_rows_it_has_none_and_stays_on_no_device() -> None:
    pending = PendingRows(3)
    rows, use = pending.waiting()
    assert (rows.shape, use.shape, use.dtype) == ((0, 3), (0,), torch.bool)
    for n in (5, 7):
        pending.extend(torch.empty(n, 3, device="meta"), torch.empty(n, dtype=torch.bool, device="meta"), "auto")
    rows, use = pending.waiting()
    assert (rows.shape, rows.device.type, use.device.type) == ((12, 3), "meta", "meta")


def test_whole_blocks_are_taken_in_order_of_arrival() -> None:
    pending, x = PendingRows(2), torch.arange(1200.0).view(600, 2)
    pending.extend(x[:100], torch.arange(100) < 50, "auto")
    assert not pending.full
    pending.extend(x[100:], torch.ones(500, dtype=torch.bool), "cpu")
    assert pending.full
    rows, use = pending.take_blocks()
    assert torch.equal(rows, x[:512])
    assert int(use.sum()) == 462
    assert torch.equal(pending.waiting()[0], x[512:])
    assert not pending.full
    pending.extend(x[:424], torch.ones(424, dtype=torch.bool), "cpu")
    assert torch.equal(pending.take_blocks()[0], torch.cat([x[512:], x[:424]]))
    assert len(pending.waiting()[0]) == 0
