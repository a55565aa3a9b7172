"""One pass of a model over a corpus in this process: over all of its shards, or over those that fall to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cone_kernels.corpora import Corpus
from cone_kernels.files import require_room, writing
from cone_kernels.models.names import measured_layer, with_own_pooling
from cone_kernels.names import Layer
from cone_kernels.runs.measurement import Measurement, measurement_of
from cone_kernels.runs.options import (
    DEFAULTS,
    LOAD_OPTIONS,
    RUN_OPTIONS,
    MeasureOptions,
    ShardOptions,
    open_corpus,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cone_kernels.models.loaded import LoadedModel, ModelLike
    from cone_kernels.runs.progress import Progress
    from cone_kernels.runs.token_sums import TokenSums

# What is given with a model in memory alone, and how a corpus of images is called where options do not go with it.
_OF_MEMORY = ("tokenizer", "processor")
_IMAGES = "a corpus of images"


def measure_part(
    model: ModelLike,
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any],
    *,
    second_moment: bool = False,
    unit_second_moment: bool = False,
    pooling: str = "mean",
    poolings: Sequence[str] = (),
    keep_vectors: Sequence[Layer | None] = (),
    token_sums: TokenSums | None = None,
    save_state: str | os.PathLike[str] | None = None,
    **options: Unpack[ShardOptions],
) -> Measurement:
    """Runs a model over a corpus once in this process; a worker, a task of Ray and a rank of torchrun call this.

    Args:
        model, corpus, second_moment, unit_second_moment, pooling, poolings, keep_vectors: as in `measure`.
        token_sums: as in `RunOptions`.
        save_state: where to write the state; with `shard` the `RunPart`, and kept vectors next to it.
        options: as in `measure`, without `workers`, `ray` and `distributed`.

    Raises:
        ValueError: `shard` without `save_state`; and as `measure`.
    """
    shard = options.get("shard")
    if shard is not None and save_state is None:
        if keep_vectors:
            raise ValueError(
                f"shard: got {shard!r}, but the sentence vectors of the whole corpus are needed; see workers"
            )
        raise ValueError(f"shard: got {shard!r} without save_state; name the file to be merged with the other parts")
    read = open_corpus(corpus, options)

    from cone_kernels.runs.runner import run

    gathered: dict[str, Any] = {
        "second_moment": second_moment,
        "unit_second_moment": unit_second_moment,
    }
    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in RUN_OPTIONS}
    with reported(model, options) as progress:
        started, clock = datetime.now(timezone.utc), time.perf_counter()
        loaded = loaded_model(model, options, images=read.of_images)
        load_seconds = time.perf_counter() - clock
        (own,) = with_own_pooling([pooling], loaded.info)
        gathered |= {"pooling": own, "poolings": list(with_own_pooling(poolings, loaded.info))}
        vectors = {
            "keep_vectors": [measured_layer(layer, loaded.info, own) for layer in keep_vectors],
            "vectors_prefix": None if shard is None else save_state,
        }
        if save_state is not None:
            require_room("save_state", save_state, _bytes_of_state(loaded, gathered))
        ran = run(loaded, read, progress=progress, token_sums=token_sums, **gathered, **vectors, **chosen)
    if save_state is not None:
        with writing(save_state):
            (ran.state if shard is None else ran.part).save(save_state)
    asked = {name: chosen[name] for name in ("backend", "token_budget", "packed", "threads", "shard")}
    return measurement_of(
        ran,
        {**gathered, **asked, "shard_size": ran.part.shard_size},
        started.isoformat(timespec="seconds"),
        load_seconds,
        load=lambda: loaded,
        sentences=read,
    )


def _bytes_of_state(loaded: LoadedModel, gathered: Mapping[str, Any]) -> int:
    """Of the file of a state of all layers, or of one shard, before there is any."""
    from cone_kernels.state.cone_state import ConeState

    layers, width = loaded.info["n_layers"], loaded.info["hidden_size"]
    if layers is None or width is None:
        return 0
    empty = ConeState.empty(range(layers + 1), width, device="meta", backend="reference", **gathered)
    tensors, _ = empty.file_content()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def loaded_model(model: ModelLike, options: MeasureOptions, *, images: bool = False) -> LoadedModel:
    """The model as a run takes it, loaded or as it is given, or its baseline, as the options say.

    Args:
        model, options: as in `measure`.
        images: whether the corpus is of images.

    Raises:
        ModuleNotFoundError, ModelError: it cannot be loaded.
        TypeError: it is none of `ModelLike`.
        ValueError: an option does not go with what is given.
    """
    baseline = options.get("baseline")
    loaded = _loaded_itself(model, options, images)
    if baseline is None:
        return loaded
    from cone_kernels.models.baseline import baseline_of

    return baseline_of(loaded, baseline)


def _loaded_itself(model: ModelLike, options: MeasureOptions, images: bool) -> LoadedModel:
    from cone_kernels.models.loaded import LoadedModel
    from cone_kernels.models.loading import load_image_model, load_model
    from cone_kernels.models.varlen_attention import packable

    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in LOAD_OPTIONS}
    of_texts = ("tokenizer", "prompt", "prompt_name", "truncate_dim")
    of_texts_by_path = (*of_texts[1:], "gguf_file")
    if isinstance(model, (str, os.PathLike)):
        _refuse_given(chosen, _OF_MEMORY, "a folder or a hub id, which has its own")
        chosen = {name: value for name, value in chosen.items() if name not in _OF_MEMORY}
        if images:
            _refuse_given(chosen, of_texts_by_path, _IMAGES)
            return load_image_model(model, **{name: chosen[name] for name in chosen if name not in of_texts_by_path})
        loaded = load_model(model, **chosen)
        return packable(loaded) if options.get("packed") and chosen["attention"] is None else loaded
    if isinstance(model, LoadedModel):
        _refuse_given(chosen, LOAD_OPTIONS, "a LoadedModel; give it to load_model")
        if images and model.image_processor is None:
            raise ValueError("corpus: got images for a model of texts; it must be texts")
        if not images and model.image_processor is not None:
            raise ValueError("corpus: got texts for a model of images; it must be a folder of images")
        return model
    from cone_kernels.models.live import live_image_model, live_model

    there = [name for name in chosen if name not in (*of_texts, *_OF_MEMORY)]
    _refuse_given(chosen, there, "a model that is in memory already")
    if images:
        _refuse_given(chosen, of_texts, _IMAGES)
        return live_image_model(model, chosen["processor"])
    _refuse_given(chosen, ("processor",), "a corpus that is not of images")
    return live_model(model, **{name: chosen[name] for name in of_texts})


def _refuse_given(chosen: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    given = [name for name in names if chosen[name] != DEFAULTS[name]]
    if given:
        value = chosen[given[0]]
        got = f"a {type(value).__name__}" if given[0] in _OF_MEMORY else f"{value!r:.40}"
        raise ValueError(f"{given[0]}: got {got} with {why}; it must be left out")


@contextmanager
def reported(model: ModelLike, options: MeasureOptions) -> Iterator[Callable[[Progress], None] | None]:
    """Gives what is to be called with the progress of a run, as `progress` and `log_json` say; None where neither does.

    The log is closed at the end.

    Raises:
        OSError: the log cannot be opened.
    """
    then, file = options.get("progress"), options.get("log_json")
    if file is None:
        yield then
        return
    from cone_kernels.runs.progress import JsonLinesProgress

    info = getattr(model, "info", {"name": type(model).__name__})
    name = str(model) if isinstance(model, (str, os.PathLike)) else str(info["name"])
    with JsonLinesProgress(file, then=then, also={"model": name}) as log:
        yield log
