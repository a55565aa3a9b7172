from __future__ import annotations

import numpy as np
import pytest
import torch

from cone_kernels import Moments
from cone_kernels.axes import axes
from tests.support.moment_cases import normal


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return normal(2, 700, 12, dtype=torch.float64, shift=0.7) * torch.linspace(1, 2, 12, dtype=torch.float64)


def test_the_three_axes_and_their_angles(rows: torch.Tensor) -> None:
    moments = Moments.empty("sentence", [0, 1], 12, second_moment=True)
    moments.update(rows)
    found = axes(moments, k=3)
    for layer, x in enumerate(rows.numpy()):
        mean = x.mean(0) / np.linalg.norm(x.mean(0))
        wanted = {
            "centered": np.linalg.eigh(np.cov(x.T)),
            "uncentered": np.linalg.eigh(x.T @ x / len(x)),
        }
        first = {}
        for name, (values, vectors) in wanted.items():
            got = getattr(found, name)
            np.testing.assert_allclose(got.values[layer].numpy(), values[:-4:-1], rtol=1e-8)
            for i in range(3):
                vector = got.vectors[layer, i].numpy()
                assert abs(vector @ vectors[:, -1 - i]) == pytest.approx(1, abs=1e-8)
                assert vector @ mean > 0 or abs(vector @ mean) < 1e-3
            first[name] = vectors[:, -1]
        np.testing.assert_allclose(found.mean_direction[layer].numpy(), mean, rtol=1e-12)
        assert float(found.centered_mean_cosine[layer]) == pytest.approx(abs(first["centered"] @ mean), abs=1e-8)
        assert float(found.uncentered_mean_cosine[layer]) == pytest.approx(abs(first["uncentered"] @ mean), abs=1e-8)
        between = abs(first["centered"] @ first["uncentered"])
        assert float(found.centered_uncentered_cosine[layer]) == pytest.approx(between, abs=1e-8)


def test_an_axis_across_the_mean_has_its_largest_component_positive() -> None:
    noise = normal(1, 400, 6, dtype=torch.float64, shift=0.0) * torch.tensor([1, 1, 1, 9, 1, 0.0])
    x = torch.cat([noise, -noise], dim=1)
    x[..., 5] += 100
    moments = Moments.empty("sentence", [0], 6, second_moment=True)
    moments.update(x)
    found = axes(moments).centered.vectors
    assert found.shape == (1, 1, 6)  # one axis, where no number is given
    axis = found[0, 0]
    assert int(axis.abs().argmax()) == 3
    assert float(axis[3]) > 0
