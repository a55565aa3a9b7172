"""What a probe shows of itself, before, during and after it watches a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cone_kernels.probe.cone_probe import ConeProbe
from tests.support.tiny_models import tiny_batch, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_probe_says_what_it_does() -> None:
    model = tiny_model("bert").eval()
    probe = ConeProbe(model, unit_second_moment=True, poolings=["max", "mean"])
    rest = "  second moments: unit_second_moment\n  poolings: mean, max"
    assert repr(probe) == (
        f"ConeProbe(BertModel, detached)\n  counts: all forwards\n  forwards seen: 0; sentences counted: 0\n{rest}"
    )
    batch = tiny_batch()
    with probe, torch.inference_mode():
        model(**batch)
        probe.pause()
        model(**batch)
        assert repr(probe) == (
            "ConeProbe(BertModel, attached)\n"
            "  counts: all forwards, paused\n"
            f"  forwards seen: 2; sentences counted: {len(batch['input_ids'])}\n"
            f"{rest}"
        )
    probe.resume()
    probe.reset()
    assert repr(probe) == (
        f"ConeProbe(BertModel, detached)\n  counts: all forwards\n  forwards seen: 2; sentences counted: 0\n{rest}"
    )


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"every": 10}, "one in 10 forwards in training mode, all in evaluation mode"),
        ({"every": 10, "during": "training"}, "one in 10 forwards in training mode"),
        ({"during": "training"}, "forwards in training mode"),
        ({"every": 10, "during": "evaluation"}, "forwards in evaluation mode"),
    ],
)
def test_a_probe_says_which_forwards_it_counts(options: dict[str, Any], counts: str) -> None:
    assert repr(ConeProbe(tiny_model("bert"), **options)).splitlines()[1] == f"  counts: {counts}"
