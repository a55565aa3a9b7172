"""What every experiment's result can do: JSON, plain sentences, a page in a notebook, a figure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cone_kernels.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Shown(ABC):
    """What has JSON data and a table: it is shown by a notebook, and read by what knows Arrow."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The result as strict JSON data: what is not defined is null, and a reason next to it says why."""

    @abstractmethod
    def to_pandas(self) -> DataFrame:
        """The numbers as a flat table."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table of `to_pandas` by Arrow's protocol: `polars.DataFrame(result)`, `pyarrow.table(result)`.

        Raises:
            ModuleNotFoundError: pandas or pyarrow is not installed.
        """
        return arrow_stream(self.to_pandas(), requested_schema)

    def _repr_html_(self) -> str:
        from cone_kernels.report import fragment

        return fragment(self.to_dict())


class ExperimentResult(Shown):
    """Base of the results; each is a frozen dataclass.

    Attributes:
        corpus: what was measured on, and what of it was dropped, replaced or left out.
        manifest: versions, device, backend, times and options.
        table: the list in `to_dict` whose entries are the rows of `to_pandas`; None where one row has it all.
    """

    table: ClassVar[str | None] = "layers"
    corpus: dict[str, Any]
    manifest: dict[str, Any]

    @abstractmethod
    def summary(self) -> tuple[str, ...]:
        """The answer in plain sentences, each said only where the data says it."""

    @property
    def n_bad(self) -> int:
        """Sentences, lines and records that are in no sum of some layer: dropped, or left out as zero or not finite."""
        return int(sum(self.corpus["dropped"].values())) + int(self.corpus["left_out"])

    def plot(self) -> Figure:
        """A matplotlib figure of the result; needs the extra `report`."""
        from cone_kernels.report import figure

        return figure(self.to_dict())

    def to_pandas(self) -> DataFrame:
        """The numbers as a flat table: a row for each layer, component or model, whatever the experiment is about.

        Columns are named as in `to_dict`, with what lies within another joined by `_`; what is not defined is NaN.

        Raises:
            ModuleNotFoundError: pandas is not installed.

        Examples:
            >>> result.to_pandas().plot(x="layer", y="sentence_anisotropy", yerr="sentence_stderr")
        """
        data = self.to_dict()
        kept = {name: value for name, value in data.items() if name not in _ABOUT}
        model = {"model": data["model"]["name"]} if "model" in data else {}
        return data_frame([model | row for row in ([kept] if self.table is None else data[self.table])])


def data_frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows of JSON data as a pandas table; what lies within another is a column of its own, named `OUTER_INNER`.

    Raises:
        ModuleNotFoundError: pandas is not installed.

    Examples:
        >>> data_frame([{"layer": 0, "sentence": {"count": 3}}]).columns
        Index(['layer', 'sentence_count'], dtype='object')
    """
    require("pandas", "pandas", "to_pandas")
    import pandas

    return pandas.json_normalize(list(rows), sep="_").infer_objects()


def arrow_stream(table: DataFrame, requested_schema: object | None) -> object:
    """A pandas table as the capsule of Arrow's stream protocol, which polars, DuckDB and others read.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    require("pyarrow", "parquet", "Arrow's protocol")
    import pyarrow

    stream: object = pyarrow.Table.from_pandas(table, preserve_index=False).__arrow_c_stream__(requested_schema)
    return stream


_ABOUT = ("schema", "experiment", "model", "corpus", "dependence", "summary", "manifest")


@dataclass(frozen=True)
class Estimate:
    """A value and its grouped-jackknife standard error; NaN where the data does not define it.

    Examples:
        >>> Estimate(0.25, 0.01).to_dict()
        {'value': 0.25, 'stderr': 0.01}
    """

    value: float
    stderr: float

    def to_dict(self) -> dict[str, float | None]:
        """The estimate as JSON data."""
        return {"value": finite(self.value), "stderr": finite(self.stderr)}


def finite(value: float) -> float | None:
    """The value as JSON can hold it: None for NaN and the infinities."""
    return value if math.isfinite(value) else None
