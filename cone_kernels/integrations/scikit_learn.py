"""A centering as a transformer of scikit-learn: in a pipeline, cloned, searched over, with names of columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from cone_kernels.centering import Centering
from cone_kernels.extras import require
from cone_kernels.names import CenteringMethod

require("sklearn", "sklearn", "CenteringTransformer")

from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

_DTYPES = ("float64", "float32")


class CenteringTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Opens the cone of vectors that it was fitted on: `cone_kernels.Centering`, as scikit-learn knows such things.

    Rows of zeros have no direction: a fit leaves them out, as everywhere in this package. A centering that was made
    before, by `cone center -o` say, goes into a pipeline as `FunctionTransformer(Centering.load(file))`.

    Args:
        method: "mean", "all-but-the-top" or "whitening"; see `Centering.fit`.
        components: how many directions all-but-the-top projects out; None: a hundredth of the width, at least 1.
        shrinkage: that of whitening, 0 to 1; None: the oracle approximating one.

    Attributes:
        centering_: the fitted `Centering`; its `save` writes the file that the rest of this package reads.
        n_features_in_: the width d.
        feature_names_in_: names of the columns, where a fit had some.

    Examples:
        >>> pipeline = make_pipeline(CenteringTransformer("all-but-the-top"), Normalizer(), LogisticRegression())
        >>> pipeline.fit(vectors, labels)  # (n, 384), (n,)
    """

    def __init__(
        self, method: CenteringMethod = "mean", *, components: int | None = None, shrinkage: float | None = None
    ) -> None:
        self.method = method
        self.components = components
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any = None) -> CenteringTransformer:
        """Fits the map on rows.

        Args:
            X: (n, d) finite numbers; float32 stays, all others become float64.
            y: ignored.

        Raises:
            ValueError: X is no such matrix or has too few rows, or an argument is out of range; see `Centering.fit`.
        """
        rows = validate_data(self, X, dtype=_DTYPES, ensure_min_samples=1 if self.method == "mean" else 2)
        self.centering_ = Centering.fit(rows, method=self.method, components=self.components, shrinkage=self.shrinkage)
        return self

    def transform(self, X: Any) -> np.ndarray[Any, Any]:
        """The rows centred, (n, d) in the dtype of X; see `Centering.apply`."""
        check_is_fitted(self)
        rows: np.ndarray[Any, Any] = validate_data(self, X, dtype=_DTYPES, reset=False)
        return self.centering_.apply(rows)

    def inverse_transform(self, X: Any) -> np.ndarray[Any, Any]:
        """The rows before they were centred, (n, d), but for what was projected out; see `Centering.inverse`."""
        check_is_fitted(self)
        rows: np.ndarray[Any, Any] = validate_data(self, X, dtype=_DTYPES, reset=False)
        return self.centering_.inverse(rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = list(_DTYPES)
        return tags
