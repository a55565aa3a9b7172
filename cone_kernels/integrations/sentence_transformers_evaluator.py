"""Anisotropy of given sentences, as a sentence-transformers evaluator."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from typing import Any

from cone_kernels.extras import require
from cone_kernels.integrations.scalars import cone_scalars
from cone_kernels.integrations.watch import transformer_in
from cone_kernels.probe.cone_probe import ConeProbe

require("sentence_transformers", "train", "ConeEvaluator")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.evaluation import SentenceEvaluator  # noqa: E402

_logger = logging.getLogger(__name__)


class ConeEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Anisotropy of every layer over some sentences: the mean cosine of distinct pairs, with its standard error.

    The layers are those of the transformer, before the modules that come after it; the sentences are encoded as
    `model.encode` does, with its default prompt, padded or flattened for flash attention. The vectors are the means
    of all tokens that the transformer takes in.

    Args:
        sentences: what to encode.
        primary_layer: the layer whose anisotropy is the primary metric (lower is better); default the last.
        layers: the layers to report; default all.
        token: also `cone/L6/token_anisotropy`.
        pooling_gap: also `cone/L6/pooling_gap`.
        batch_size, show_progress_bar: of `encode`.
        name: put before the metrics' names and into the file's.
        write_csv: append a row to `cone_evaluation_{name}_results.csv` in the output folder.
        probe_options: of `ConeProbe`. For standard errors sentences are neighbours in the order in which the library
            encodes them, by length.

    Raises:
        ValueError: there are fewer than two sentences, or `primary_layer` is not among `layers`.

    Examples:
        >>> evaluator = ConeEvaluator(sentences, name="dev")
        >>> evaluator(model)[evaluator.primary_metric]  # "dev_cone/L6/anisotropy"
        0.0552
    """

    def __init__(
        self,
        sentences: Sequence[str],
        *,
        primary_layer: int | None = None,
        layers: Sequence[int] | None = None,
        token: bool = False,
        pooling_gap: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        name: str = "",
        write_csv: bool = True,
        **probe_options: Any,
    ) -> None:
        super().__init__()
        if len(sentences) < 2:
            raise ValueError(f"sentences: got {len(sentences)}; it must be two or more, as anisotropy is of pairs")
        if layers is not None and primary_layer is not None and primary_layer not in layers:
            raise ValueError(f"primary_layer: got {primary_layer}; it must be one of layers {list(layers)}")
        self.sentences = list(sentences)
        self.primary_layer = primary_layer
        self.batch_size = batch_size
        self.show_progress_bar = show_progress_bar
        self.name = name
        self.write_csv = write_csv
        self.csv_file = f"cone_evaluation_{name}_results.csv"
        self.greater_is_better = False
        self._scalars = {"layers": layers, "token": token, "pooling_gap": pooling_gap}
        self._probe_options = probe_options
        if primary_layer is not None:
            self.primary_metric = _primary_metric(primary_layer)

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Metrics by name, as the library's evaluators return them."""
        with ConeProbe(transformer_in(model), **self._probe_options) as probe:
            model.encode(
                self.sentences,
                batch_size=self.batch_size,
                show_progress_bar=self.show_progress_bar,
                convert_to_numpy=False,
            )
        values = cone_scalars(probe.state, **self._scalars)  # type: ignore[arg-type]
        layers = self._scalars["layers"] or probe.state.layers
        primary = layers[-1] if self.primary_layer is None else self.primary_layer  # type: ignore[index]
        self.primary_metric = _primary_metric(primary)

        _logger.info("Anisotropy on the %s dataset (epoch %d, steps %d):", self.name, epoch, steps)
        _logger.info("layer %d:\t%.6f", primary, values[self.primary_metric])
        if output_path is not None and self.write_csv:
            self._append_row(output_path, {"epoch": epoch, "steps": steps, **values})

        reported: dict[str, float] = self.prefix_name_to_metrics(values, self.name)
        self.store_metrics_in_model_card_data(model, reported, epoch, steps)
        return reported

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of this evaluator."""
        return {"n_sentences": len(self.sentences), "primary_layer": self.primary_layer}

    def _append_row(self, output_path: str, row: dict[str, Any]) -> None:
        os.makedirs(output_path, exist_ok=True)
        path = os.path.join(output_path, self.csv_file)
        begun = os.path.isfile(path)
        with open(path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if not begun:
                writer.writeheader()
            writer.writerow(row)


def _primary_metric(layer: int) -> str:
    return f"cone/L{layer}/anisotropy"
