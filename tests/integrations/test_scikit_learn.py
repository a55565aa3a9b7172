"""`CenteringTransformer` as scikit-learn knows transformers: its own checks, a pipeline, names of columns."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

from cone_kernels import Centering
from cone_kernels.integrations.scikit_learn import CenteringTransformer

TRANSFORMERS = [
    CenteringTransformer(),
    CenteringTransformer("all-but-the-top"),
    CenteringTransformer("whitening", shrinkage=0.5),
]


def rows(n: int = 60, d: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(1.0, np.linspace(0.5, 2, d), (n, d))


@parametrize_with_checks(TRANSFORMERS)
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("transformer", TRANSFORMERS)
def test_it_maps_as_the_centering_of_the_same_rows(transformer: CenteringTransformer) -> None:
    x = rows()
    fitted = clone(transformer).fit(x)
    centering = Centering.fit(x, **transformer.get_params())
    assert fitted.centering_ == centering
    np.testing.assert_array_equal(fitted.transform(x), centering(x))
    np.testing.assert_array_equal(fitted.inverse_transform(x), centering.inverse(x))


def test_in_a_pipeline_that_is_searched_over() -> None:
    x, y = rows(), np.arange(60) % 2
    pipeline = make_pipeline(CenteringTransformer(), Normalizer(), LogisticRegression())
    methods = ["mean", "all-but-the-top", "whitening"]
    search = GridSearchCV(pipeline, {"centeringtransformer__method": methods}, cv=2).fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(x), search.predict(x))


def test_pandas_in_and_out() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows(d=3), columns=["a", "b", "c"], index=range(10, 70))
    out = CenteringTransformer().set_output(transform="pandas").fit_transform(frame)
    assert list(out.columns) == ["a", "b", "c"]
    assert list(out.index) == list(frame.index)
    np.testing.assert_allclose(out.mean(), 0, atol=1e-12)


def test_what_it_fitted_is_a_file_of_this_package(tmp_path: Path) -> None:
    fitted = CenteringTransformer("all-but-the-top", components=2).fit(rows())
    fitted.centering_.save(tmp_path / "centering.safetensors")
    assert Centering.load(tmp_path / "centering.safetensors") == fitted.centering_
