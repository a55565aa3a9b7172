"""All four experiments on one or more models, one pass of each, and a folder with everything that came of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.axis import AxisResult, axis_of
from cone_kernels.experiments.centering import CenteringResult, center_of
from cone_kernels.experiments.layers import LayersResult, layers_of
from cone_kernels.experiments.layers_table import TableFormat, encoded_table, layer_rows, require_table_format
from cone_kernels.experiments.pooling import PoolingResult, pooling_of
from cone_kernels.experiments.rotation import RotationResult, rotation_of
from cone_kernels.extras import require
from cone_kernels.files import sha256_of, write_whole
from cone_kernels.names import pooling_names
from cone_kernels.runs.measure import measure
from cone_kernels.runs.measurement import Measurement, labels, shared_corpus, threads_of
from cone_kernels.runs.options import SharedOptions, open_corpus, options_by_model, rank_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loading import LoadedModel
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/run/1"
MANIFEST_SCHEMA = "cone_kernels/manifest/1"


@dataclass(frozen=True)
class ModelResults:
    """The experiments on one model.

    Attributes:
        layers, pooling, axis: as the functions of these names return them.
        centerings: the three ways to open the cone at the axis's layer, before and after.
        state: the sums that all of it was computed from.
    """

    layers: LayersResult
    pooling: PoolingResult
    axis: AxisResult
    centerings: tuple[CenteringResult, ...]
    state: ConeState = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The experiments by name as JSON data."""
        return {name: getattr(self, name).to_dict() for name in ("layers", "pooling", "axis")}


@dataclass(frozen=True)
class RunResult:
    """What `run` found.

    Attributes:
        models: the experiments on each model.
        rotation: the comparison of the models; None for a single one.
        corpus: what was measured on, and what was dropped, replaced or left out.
        manifest: models, options, versions, device and times.
        out: the folder that everything was written to.
    """

    models: tuple[ModelResults, ...]
    rotation: RotationResult | None
    corpus: dict[str, Any]
    manifest: dict[str, Any]
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """The results as strict JSON data: what results.json holds."""
        return {
            "schema": SCHEMA,
            "models": [model.to_dict() for model in self.models],
            "rotation": self.rotation.to_dict() if self.rotation else None,
            "centering": [centering.to_dict() for model in self.models for centering in model.centerings],
            "manifest": self.manifest,
        }

    def summary(self) -> tuple[str, ...]:
        """The answers of all experiments in plain sentences."""
        found = [result for model in self.models for result in (model.layers, model.pooling, model.axis)]
        every = [*found, self.rotation] if self.rotation else found
        return tuple(line for result in every for line in result.summary())

    @property
    def n_bad(self) -> int:
        """Sentences, lines and records that are in no sum of some layer, of the model where they are most."""
        return max(model.layers.n_bad for model in self.models)

    def __repr__(self) -> str:
        names = ", ".join(model.layers.model["architecture"] for model in self.models)
        return f"RunResult({names} on {self.corpus['sentences']} sentences, written to {self.out})"


def run(
    model: Sequence[str | os.PathLike[str] | LoadedModel],
    corpus: str | os.PathLike[str] | Corpus | Iterable[str],
    out: str | os.PathLike[str],
    *,
    layer: int = -1,
    k: int = 3,
    top: int = 5,
    tokens: int = 20,
    rogue: int = 3,
    pooling: str | Sequence[str] = ("mean",),
    published: bool = False,
    table: TableFormat = "parquet",
    **options: Unpack[SharedOptions],
) -> RunResult:
    """Runs all four experiments and the centerings in one pass of each model, and writes a folder.

    The folder gets `results.json`, `report.html`, `manifest.json`, `layers.parquet` or `layers.csv`, and for each model
    `states/NAME.safetensors` and `axes/NAME.safetensors`. Each file is written whole or not at all, and nothing before
    everything is computed.

    Args:
        model: folders, hub ids, or what `load_model` returned; with two or more they are compared.
        corpus: a file, a `Corpus`, or sentences.
        out: the folder; made where there is none, and files of these names in it are replaced.
        layer: the layer whose axes are looked at and compared; -1 is the last of each model.
        k, top, tokens: as in `axis`; `rotation` compares the subspaces of as many axes.
        rogue, published: as in `layers`.
        pooling: as in `pooling`.
        table: "parquet" (needs pyarrow) or "csv".
        options: `SharedOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        TypeError: `model` is one model in place of a sequence.
        ModuleNotFoundError: matplotlib or pyarrow is not installed; before anything is run.
        OSError: the folder cannot be written.
        ValueError: no model, and as the experiments.

    Example:
        >>> run(["sentence-transformers/all-MiniLM-L6-v2"], "snli_dev.jsonl", "cone", limit=1000)
        RunResult(BertModel on 1000 sentences, written to cone)
    """
    if isinstance(model, (str, os.PathLike)) or not isinstance(model, Sequence):
        raise TypeError(f"model: got {model!r:.80}; it must be a sequence of models")
    if not model:
        raise ValueError("model: got none; it must be at least one")
    require_table_format(table)
    require("matplotlib", "report", "report.html")
    from cone_kernels.centering import METHODS

    folder = Path(out)
    writes = rank_of(options) == 0
    for part in (folder, folder / "states", folder / "axes") if writes else ():
        part.mkdir(parents=True, exist_ok=True)
    read = open_corpus(corpus, options, again=True)
    names = pooling_names(pooling)
    results, measurements = [], []
    for one, rest in zip(model, options_by_model(options, len(model)), strict=True):
        measured = measure(one, read, second_moment=True, poolings=names, keep_vectors=(layer,), **rest)
        with threads_of(measured):
            results.append(
                ModelResults(
                    layers=layers_of(measured, rogue=rogue, published=published),
                    pooling=pooling_of(measured, pooling=names),
                    axis=axis_of(measured, layer=layer, k=k, top=top, tokens=tokens),
                    centerings=tuple(center_of(measured, layer=layer, method=method) for method in METHODS),
                    state=measured.state,
                )
            )
        # The model's weights are not needed any more; the next one takes their place.
        measurements.append(replace(measured, load=None))
    compared = None
    if len(measurements) > 1:
        with threads_of(*measurements):
            compared = rotation_of(measurements, layer=layer, k=k)
    asked = {"layer": layer, "k": k, "top": top, "tokens": tokens, "rogue": rogue, "pooling": list(names)}
    files = [_file_name(label) for label in labels(measurements)]
    named = _with_files(results, files)
    result = RunResult(named, compared, shared_corpus(measurements), _manifest(measurements, asked), folder)
    if writes:
        _write(result, files, table)
    return result


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"


def _with_files(results: Sequence[ModelResults], names: Sequence[str]) -> tuple[ModelResults, ...]:
    """The axes with the names of the files that their vectors are about to be written to."""
    pairs = zip(results, names, strict=True)
    return tuple(replace(one, axis=replace(one.axis, vectors_file=f"axes/{name}.safetensors")) for one, name in pairs)


def _manifest(measurements: Sequence[Measurement], asked: dict[str, Any]) -> dict[str, Any]:
    first = measurements[0]
    return {
        "models": [{"model": measured.model, "run": measured.manifest} for measured in measurements],
        "corpus": {
            name: first.corpus[name] for name in ("name", "fields", "limit", "sample", "sentences", "fingerprint")
        },
        "options": {**first.manifest["options"], **asked},
        "versions": first.manifest["versions"],
        "device": first.manifest["device"],
        "started": first.manifest["started"],
        "seconds": {
            what: round(sum(measured.manifest["seconds"][what] for measured in measurements), 3)
            for what in ("load", "run")
        },
    }


def _write(result: RunResult, names: Sequence[str], table: TableFormat) -> None:
    from cone_kernels.report import write_report

    folder, results = result.out, result.to_dict()
    files = {}
    for name, model in zip(names, result.models, strict=True):
        for kind, saved in (("states", model.state), ("axes", model.axis.vectors)):
            saved.save(folder / kind / f"{name}.safetensors")
            files[f"{kind}/{name}.safetensors"] = sha256_of(folder / kind / f"{name}.safetensors")
    contents = {
        "results.json": (json.dumps(results, indent=2, allow_nan=False) + "\n").encode(),
        f"layers.{table}": encoded_table(layer_rows(results), table),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
        files[name] = hashlib.sha256(content).hexdigest()
    write_report(results, folder / "report.html")
    files["report.html"] = sha256_of(folder / "report.html")
    manifest = {"schema": MANIFEST_SCHEMA, **result.manifest, "files": files}
    write_whole(folder / "manifest.json", (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())
