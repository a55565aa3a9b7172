"""Images and texts in one space, as of CLIP and SigLIP: two cones, and the gap between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sized
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cone_kernels.corpora.sources import image_files
from cone_kernels.experiments.level import levels_of
from cone_kernels.experiments.modality_gap_result import ModalityGapResult, Tower, TowerLayer
from cone_kernels.experiments.result import Estimate
from cone_kernels.names import IMAGE_SUFFIXES
from cone_kernels.runs.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cone_kernels.corpora import Corpus
    from cone_kernels.models.towers import Towers
    from cone_kernels.probe.cone_probe import ConeProbe
    from cone_kernels.state.cone_state import Moments
    from cone_kernels.statistics.claims import Claim

# Runs a batch, whose jackknife groups may be given: its vectors, and how many items were cut at the longest input.
_Batch: TypeAlias = "Callable[[Towers, ConeProbe, list[Any], Tensor | None], tuple[Tensor, int]]"


def modality_gap(
    model: str | os.PathLike[str] | nn.Module,
    images: str | os.PathLike[str] | Iterable[Any],
    texts: str | os.PathLike[str] | Corpus | Iterable[str],
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ModalityGapResult:
    """Measures both towers of a model of images and texts at every layer, and the gap between their vectors.

    Liang et al. 2022 ("Mind the gap") found that the vectors of images and of texts lie in two cones apart. Means are
    those of the vectors at length 1, as the model compares them. A sentence of the sums is one image or one text. The
    gap is held against that of images and texts that lie in one cone (`distance_of_means`), which is never 0.

    Args:
        model: a folder, a hub id, or a model in memory.
        images: a folder of image files, or an iterable of paths, images of PIL, arrays, or processed tensors (C, H, W).
        texts: a file, a `Corpus`, or sentences. Several captions of an image are alike: a `Corpus` with `group_by`
            keeps them in one jackknife group, for errors and a null that are large enough.
        tokenizer, image_processor: of a model in memory; others have their own.
        batch_size: images, and texts, of a forward.
        device, dtype, revision, trust_remote_code: as in `load_model`.
        backend: who computes the sums, as in `MeasureOptions`.
        threads: CPU threads; None takes all.
        progress: called after every batch, first of the images, then of the texts, with what `unit` counts.

    Raises:
        FileNotFoundError: there is no such folder of images, or no image in it, or no file of texts.
        ModuleNotFoundError: Pillow is not installed, which image files need.
        ModelError: the model cannot be loaded, or has no two towers.
        ImageError: an image cannot be read.
        BackendUnavailable: the backend asked for cannot run here.
        ValueError: `batch_size` or `threads` is below 1; there is no image, or no text.

    Examples:
        >>> result = modality_gap("openai/clip-vit-base-patch32", "photos", "captions.txt")
        >>> result.cosine_of_means.value, result.images.output.anisotropy
    """
    import torch

    from cone_kernels.devices import cpu_threads
    from cone_kernels.doctor import versions
    from cone_kernels.models.loaded import evaluation
    from cone_kernels.models.loading import load_towers
    from cone_kernels.models.towers import Towers
    from cone_kernels.runs.options import open_corpus

    for argument, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{argument}: got {value}; it must be 1 or more")
    found, sentences = _images_of(images), open_corpus(texts, {})
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    if isinstance(model, torch.nn.Module):
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        if tokenizer is None or image_processor is None:
            missing = "tokenizer" if tokenizer is None else "image_processor"
            raise ValueError(f"{missing}: got none; it must be given with a model that is in memory already")
        towers = Towers(model, tokenizer, image_processor, name)
    else:
        towers = load_towers(model, device, dtype, revision, trust_remote_code)
    load_seconds = time.perf_counter() - clock
    with evaluation(towers.model), torch.inference_mode(), cpu_threads(threads):
        clock = time.perf_counter()
        report = _reporter(progress, "images", lambda: len(found) if isinstance(found, Sized) else None)
        shared: dict[str, Any] = {"batch_size": batch_size, "backend": backend}
        pictures = ((image, None) for image in found)
        of_images, _ = _measured(towers, towers.image_tower, pictures, _run_images, report, "images", **shared)
        report = _reporter(progress, "texts", sentences.expected_sentences)
        captions = ((text, sentences.group) for text in sentences)
        of_texts, truncated = _measured(towers, towers.text_tower, captions, _run_texts, report, "texts", **shared)
        used, seconds = torch.get_num_threads(), time.perf_counter() - clock
    images_output, texts_output = of_images.state.output, of_texts.state.output
    assert images_output is not None
    assert texts_output is not None
    lost = {"left_out": _left_out(of_images) + _left_out(of_texts), "truncated": truncated}
    return ModalityGapResult(
        model={
            "name": towers.name,
            "architecture": type(towers.model).__name__,
            "dtype": str(towers.model.dtype).removeprefix("torch."),
        },
        images=of_images,
        texts=of_texts,
        cosine_of_means=_estimate(images_output, texts_output, _cosine),
        gap=_estimate(images_output, texts_output, lambda a, b: (a - b).norm(dim=-1)),
        gap_claim=_gap_claim(images_output, texts_output),
        across=_estimate(images_output, texts_output, lambda a, b: (a * b).sum(-1)),
        corpus=sentences.summary.to_dict() | lost,
        manifest={
            "versions": versions(),
            "started": started.isoformat(timespec="seconds"),
            "seconds": {"load": round(load_seconds, 3), "run": round(seconds, 3)},
            "device": str(towers.model.device),
            "batch_size": batch_size,
            "backend": backend,
            "threads": used,
        },
    )


def _reporter(
    progress: Callable[[Progress], None] | None, unit: str, expected: Callable[[], int | None]
) -> Callable[[int], None]:
    """What tells `progress` how many images or texts are done, from now on.

    Args:
        progress: as in `modality_gap`.
        unit: what is counted.
        expected: how many there will be.
    """
    clock = time.perf_counter()

    def report(done: int) -> None:
        if progress is not None:
            progress(Progress(done, 0, expected(), elapsed=time.perf_counter() - clock, unit=unit))

    return report


def _images_of(source: Any) -> Iterable[Any]:
    """Images one by one: the files of a folder and below in the order of their paths, or what was given.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        TypeError: it is neither a folder nor an iterable of images.
    """
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"images: there is no folder {os.fspath(source)!r}")
        found = image_files(folder)
        if not found:
            raise FileNotFoundError(f"images: {folder} has no file in it that ends in {', '.join(IMAGE_SUFFIXES)}")
        return found
    if not isinstance(source, Iterable):
        raise TypeError(f"images: got {type(source).__name__}; it must be a folder, or an iterable of images")
    return source


def _measured(
    towers: Towers,
    part: nn.Module,
    items: Iterable[tuple[Any, int | None]],
    run: _Batch,
    report: Callable[[int], None],
    what: str,
    *,
    batch_size: int,
    backend: str,
) -> tuple[Tower, int]:
    """One tower over its images or texts, and how many of them were cut at its longest input.

    Args:
        items: each with its jackknife group; None for all where their order decides it.
    """
    import torch

    from cone_kernels.models.towers import batches_of
    from cone_kernels.probe.cone_probe import ConeProbe

    probe, first, cut = ConeProbe(part, backend=backend).attach(), 0, 0
    try:
        for batch in batches_of(items, batch_size):
            of_batch, given = [item for item, _ in batch], [group for _, group in batch]
            groups = None if given[0] is None else torch.tensor(given)
            vectors, truncated = run(towers, probe, of_batch, groups)
            probe.state.add_output(vectors, torch.arange(first, first + len(batch)), groups=groups)
            first, cut = first + len(batch), cut + truncated
            report(first)
    finally:
        probe.detach()
    if first == 0:
        raise ValueError(f"{what}: got none; it must be one at least")
    state = probe.state.on_cpu()
    sentence, token = levels_of(state.sentence, what), levels_of(state.token)
    assert state.output is not None
    layers = zip(state.layers, probe.layer_names, sentence, token, strict=True)
    (output,) = levels_of(state.output, what)
    return Tower(type(part).__name__, tuple(TowerLayer(*layer) for layer in layers), output, state), cut


def _left_out(tower: Tower) -> int:
    """Vectors that are zero or not finite, of the layer of the tower, or its output, that has most of them."""
    levels = [*(row.sentence for row in tower.layers), tower.output]
    return max(level.n_zero + level.n_nonfinite for level in levels)


def _run_images(towers: Towers, probe: ConeProbe, images: list[Any], groups: Tensor | None) -> tuple[Tensor, int]:
    probe.next_batch(groups=groups)
    return towers.image_vectors(towers.image_inputs(images)), 0


def _run_texts(towers: Towers, probe: ConeProbe, texts: list[Any], groups: Tensor | None) -> tuple[Tensor, int]:
    inputs, mask, truncated = towers.text_inputs(texts)
    probe.next_batch(mask=mask, groups=groups)
    return towers.text_vectors(inputs), truncated


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    cosine: Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosine


def _estimate(images: Moments, texts: Moments, of_means: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
    """A value of the two means of unit vectors, (d,) each, and its error: the groups of each are left out in turn."""
    from cone_kernels.sums import jackknife_stderr

    whole = [_mean(moments) for moments in (images, texts)]
    value = float(of_means(whole[0], whole[1]))
    variance = 0.0
    for at, moments in enumerate((images, texts)):
        sums, counts = moments.unit_sum[0], moments.count[0]  # (G, d), (G,)
        left = counts.sum() - counts
        means = (sums.sum(0) - sums) / left[:, None]  # (G, d)
        values = of_means(means, whole[1]) if at == 0 else of_means(whole[0], means)
        variance += float(jackknife_stderr(values[None], (counts > 0)[None])[0]) ** 2
    return Estimate(value, variance**0.5)


def _gap_claim(images: Moments, texts: Moments) -> Claim:
    """The gap against that of images and texts of one population."""
    from cone_kernels.statistics.mean_distance import distance_of_means, long_stretches
    from cone_kernels.statistics.mean_products import GroupedSums

    both = (GroupedSums(moments.unit_sum[0], moments.count[0].double()) for moments in (images, texts))
    of_images, of_texts = map(long_stretches, both)
    return distance_of_means(of_images, of_texts)


def _mean(moments: Moments) -> Tensor:
    mean: Tensor = moments.unit_sum[0].sum(0) / moments.count[0].sum()
    return mean
