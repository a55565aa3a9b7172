"""All experiments on one or more models, one pass of each, and a folder with everything that came of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from cone_kernels.corpora import Corpus
from cone_kernels.corpora.pairs import LabelledPairs, opened_pairs
from cone_kernels.experiments.axis_result import AxisResult
from cone_kernels.experiments.centering import center_of
from cone_kernels.experiments.centering_result import CenteringResult
from cone_kernels.experiments.layers_result import LayersResult
from cone_kernels.experiments.layers_table import TableFormat, encoded_table, layer_rows, table_format
from cone_kernels.experiments.pooling_result import PoolingResult
from cone_kernels.experiments.quality_result import Quality
from cone_kernels.experiments.result import ExperimentResult, Shown, data_frame
from cone_kernels.experiments.rotation import rotation_of
from cone_kernels.experiments.rotation_result import RotationResult
from cone_kernels.extras import require
from cone_kernels.files import every_output, require_local, sha256_of, write_whole, writing
from cone_kernels.names import (
    METHODS,
    QUALITY_NOT_MEASURED,
    QUALITY_SAID_BY_THE_RUN,
    Layer,
    asked_poolings,
    experiments_in_run,
)
from cone_kernels.runs.measure import measure as run_model
from cone_kernels.runs.measurement import Measurement, labels, shared_corpus, threads_of
from cone_kernels.runs.options import SharedOptions, open_corpus, options_by_model, rank_of, refuse_images

if TYPE_CHECKING:
    from pandas import DataFrame
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import ModelLike
    from cone_kernels.state.cone_state import ConeState

SCHEMA = "cone_kernels/run/1"
MANIFEST_SCHEMA = "cone_kernels/manifest/1"


@dataclass(frozen=True)
class ModelResults:
    """The experiments on one model.

    Attributes:
        results: what each experiment on one model found, by its name in `cone_kernels.names.EXPERIMENTS`; where
            the vectors of the axis's layer have no axis, the axis is not among them.
        centerings: the ways to open the cone at the axis's layer, before and after; none where there is no axis.
        state: the sums that all of it was computed from.
        undefined: why there is no axis, in words; None where there is one.
        quality: whether centring helps, by labelled pairs; None without such.
    """

    results: Mapping[str, Any]
    centerings: tuple[CenteringResult, ...]
    state: ConeState = field(repr=False, compare=False)
    undefined: str | None = None
    quality: Quality | None = None

    @property
    def layers(self) -> LayersResult:
        """As `layers` returns it."""
        return cast("LayersResult", self.results["layers"])

    @property
    def pooling(self) -> PoolingResult:
        """As `pooling` returns it."""
        return cast("PoolingResult", self.results["pooling"])

    @property
    def axis(self) -> AxisResult:
        """As `axis` returns it."""
        return cast("AxisResult", self.results["axis"])

    def to_dict(self) -> dict[str, Any]:
        """The experiments and the quality by name as JSON data; where there is no axis, `undefined` says why."""
        quality = {} if self.quality is None else {"quality": self.quality.to_dict()}
        reason = {} if self.undefined is None else {"undefined": {"axis": self.undefined}}
        return {name: result.to_dict() for name, result in self.results.items()} | quality | reason


@dataclass(frozen=True)
class RunResult(Shown):
    """What `run` found.

    Attributes:
        models: the experiments on each model.
        rotation: the comparison of the models; None for a single one, and where one of them has no axis.
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
        found = [result for model in self.models for result in model.results.values()]
        every = [*found, self.rotation] if self.rotation else found
        quality = [model.quality.summary() if model.quality else (QUALITY_NOT_MEASURED,) for model in self.models]
        return (*(line for result in every for line in result.summary()), *dict.fromkeys(chain(*quality)))

    @property
    def n_bad(self) -> int:
        """Sentences, lines and records that are in no sum of some layer, of the model where they are most."""
        return max(model.layers.n_bad for model in self.models)

    def to_pandas(self) -> DataFrame:
        """A row for each model and layer, with the columns of the table that `run` writes.

        Raises:
            ModuleNotFoundError: pandas is not installed.

        Examples:
            >>> result.to_pandas().pivot(index="layer", columns="model", values="sentence_anisotropy").plot()
        """
        return data_frame(layer_rows(self.to_dict()))

    def __repr__(self) -> str:
        names = ", ".join(model.layers.model["architecture"] for model in self.models)
        return f"RunResult({names} on {self.corpus['sentences']} sentences, written to {self.out})"


def run(
    model: Sequence[ModelLike],
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any],
    out: str | os.PathLike[str],
    *,
    layer: Layer | None = None,
    k: int = 3,
    top: int = 5,
    tokens: int = 20,
    rogue: int = 3,
    pooling: str | Sequence[str] = ("mean",),
    published: bool = False,
    table: TableFormat | None = None,
    overwrite: bool = False,
    pairs: str | os.PathLike[str] | LabelledPairs | None = None,
    measure: str | None = None,
    **options: Unpack[SharedOptions],
) -> RunResult:
    """Runs all experiments and the centerings in one pass of each model, and writes a folder.

    The folder gets `results.json`, `report.html`, `manifest.json`, `layers.parquet` or `layers.csv`, and for each model
    `states/NAME.safetensors` and `axes/NAME.safetensors`. Each file is written whole or not at all, and nothing before
    everything is computed; where one cannot be written, the others are, and the error names it.

    Args:
        model: folders, hub ids, what `load_model` returned, or models in memory (`ModelLike`); several are compared.
        corpus: a file, a `Corpus`, or sentences.
        out: the folder; made where there is none.
        layer: the layer whose axes are looked at and compared; -1 is the last of each model, "output" are the vectors
            that the models themselves give. None is the output, or the last layer of a model without one.
        k, top, tokens: as in `axis`; `rotation` compares the subspaces of as many axes.
        rogue, published: as in `layers`.
        pooling: as in `pooling`.
        table: "parquet" (needs pyarrow) or "csv". Default: what can be written, Parquet rather than CSV.
        overwrite: replace the run that `out` holds: its files go when the new ones are there to be written.
        pairs, measure: as in `center`; the texts go through each model once for each pooling.
        options: `SharedOptions`: limit, field, errors, malformed, device, dtype, backend, workers, checkpoint, ...

    Raises:
        TypeError: `model` is one model in place of a sequence.
        ModuleNotFoundError: matplotlib or pyarrow is not installed; before anything is run.
        FileExistsError: `out` holds a run, and `overwrite` is False.
        OSError: the folder, or a file in it, cannot be written; the others are.
        ValueError: no model, and as the experiments.

    Examples:
        >>> run(["sentence-transformers/all-MiniLM-L6-v2"], "snli_dev.jsonl", "cone", limit=1000)
        RunResult(BertModel on 1000 sentences, written to cone)
    """
    if isinstance(model, (str, os.PathLike)) or not isinstance(model, Sequence):
        raise TypeError(f"model: got {model!r:.80}; it must be a sequence of models")
    if not model:
        raise ValueError("model: got none; it must name at least one")
    table = table_format(table)
    labelled = opened_pairs(pairs, measure)
    require("matplotlib", "report", "report.html")
    writes = rank_of(options) == 0
    folder = _folder(out, overwrite=overwrite, writes=writes)
    read = open_corpus(corpus, options, again=True)
    refuse_images(read)
    names = asked_poolings(pooling)
    settings: dict[str, dict[str, Any]] = {
        "layers": {"rogue": rogue, "published": published},
        "pooling": {"pooling": names},
        "axis": {"layer": layer, "k": k, "top": top, "tokens": tokens},
    }
    results, measurements = [], []
    for one, rest in zip(model, options_by_model(options, len(model)), strict=True):
        measured = run_model(one, read, second_moment=True, poolings=names, keep_vectors=(layer,), **rest)
        own = settings | {"layers": settings["layers"] | {"options": rest}}
        with threads_of(measured):
            quality = None if labelled is None else _quality(measured, labelled, layer, names, rest)
            results.append(_results_of(measured, layer, own, quality))
        # The model's weights are not needed any more; the next one takes their place.
        measurements.append(replace(measured, load=None))
    compared = None
    if len(measurements) > 1 and not any(one.undefined for one in results):
        with threads_of(*measurements):
            compared = rotation_of(measurements, layer=layer, k=k)
    asked: dict[str, Any] = {"layer": layer, "k": k, "top": top, "tokens": tokens, "rogue": rogue}
    asked |= {"pooling": list(names)}
    asked |= {} if labelled is None else {"pairs": labelled.name, "measure": labelled.measure}
    files = [_file_name(label) for label in labels(measurements)]
    named = _with_files(results, files)
    result = RunResult(named, compared, shared_corpus(measurements), _manifest(measurements, asked), folder)
    if writes:
        _write(result, files, table)
    return result


def _folder(out: str | os.PathLike[str], *, overwrite: bool, writes: bool) -> Path:
    """The folder of the results, which is made where this process writes; FileExistsError where it holds a run."""
    require_local("out", out)
    folder = Path(out)
    if not writes:
        return folder
    if not overwrite and (there := _files_of_a_run(folder)):
        raise FileExistsError(
            f"out: {folder} holds a run, with {there[0].relative_to(folder)}; overwrite=True (--overwrite) replaces "
            "it, or name another folder"
        )
    for part in (folder, folder / "states", folder / "axes"):
        part.mkdir(parents=True, exist_ok=True)
    return folder


def _results_of(
    measured: Measurement, layer: Layer | None, settings: dict[str, dict[str, Any]], quality: Quality | None
) -> ModelResults:
    """Every experiment and centering of one model; where the layer has no axis, what needs none."""
    undefined = measured.why_no_axis(measured.layer(layer))
    results = {
        name: _experiment(name)(measured, **settings.get(name, {}))
        for name in experiments_in_run("each model")
        if name != "axis" or undefined is None
    }
    centerings = tuple(
        replace(
            center_of(measured, layer=layer, method=method),
            quality=None if quality is None else QUALITY_SAID_BY_THE_RUN,
        )
        for method in (METHODS if undefined is None else ())
    )
    return ModelResults(
        results=results, centerings=centerings, state=measured.state, undefined=undefined, quality=quality
    )


def _quality(
    measured: Measurement, pairs: LabelledPairs, layer: Layer | None, poolings: Sequence[str], options: Any
) -> Quality:
    from cone_kernels.experiments.quality import quality_of

    return quality_of(measured, pairs, layer=measured.layer(layer), poolings=poolings, options=options)


def _experiment(name: str) -> Callable[..., ExperimentResult]:
    """What makes an experiment's result of a measurement: `NAME_of` of the module NAME."""
    found: Callable[..., ExperimentResult] = getattr(import_module(f"cone_kernels.experiments.{name}"), f"{name}_of")
    return found


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.-]+", "-", label).strip("-.") or "model"


def _with_files(results: Sequence[ModelResults], names: Sequence[str]) -> tuple[ModelResults, ...]:
    """The axes with the names of the files that their vectors are about to be written to."""
    named = []
    for one, name in zip(results, names, strict=True):
        if one.undefined is not None:
            named.append(one)
            continue
        axis = replace(one.axis, vectors_file=f"axes/{name}.safetensors")
        named.append(replace(one, results={**one.results, "axis": axis}))
    return tuple(named)


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

    folder, results, files = result.out, result.to_dict(), {}

    def write(name: str, save: Callable[[Path], object]) -> None:
        with writing(folder / name):
            save(folder / name)
            files[name] = sha256_of(folder / name)

    def write_content(name: str, content: bytes) -> None:
        write(name, lambda path: write_whole(path, content))

    with every_output():
        for file in _files_of_a_run(folder):
            with writing(file):
                file.unlink()
        # Most is lost with the numbers, so they come first.
        write_content("results.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        write_content(f"layers.{table}", encoded_table(layer_rows(results), table))
        write("report.html", lambda path: write_report(results, path))
        for name, model in zip(names, result.models, strict=True):
            write(f"states/{name}.safetensors", model.state.save)
            if model.undefined is None:
                write(f"axes/{name}.safetensors", model.axis.vectors.save)
        listed = dict(sorted(files.items(), key=lambda item: "/" not in item[0]))
        manifest = {"schema": MANIFEST_SCHEMA, **result.manifest, "files": listed}
        write_content("manifest.json", (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())


def _files_of_a_run(folder: Path) -> list[Path]:
    """What an earlier run has left in a folder; what else is in it is not a run's."""
    tables = (f"layers.{table}" for table in get_args(TableFormat))
    names = [folder / name for name in ("manifest.json", "results.json", "report.html", *tables)]
    vectors = (file for kind in ("states", "axes") for file in folder.glob(f"{kind}/*.safetensors"))
    return [file for file in (*names, *vectors) if file.exists()]
