"""How many sentences a number needs: what samples of n sentences say of one model, beside how far they differ.

python -m bench.sample_sizes --model M --corpus C [--out FILE]

The corpus is run once, in a random order, and its sentence vectors are cut into disjoint samples of n sentences. Of
each: the mean cosine and the standard error that it is given, at two layers and the output; and of the output's
covariance the first axis, compared with those of the other samples, and numbers that grow with n.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

from torch import Tensor

from cone_kernels import Corpus, Moments, load_model, metrics, top_eigenvectors
from cone_kernels.runs.runner import run

SIZES = (20, 30, 100, 300, 1000, 3000)
MOST_SAMPLES = 40


def sample_sizes(model: str, corpus: str) -> dict[str, Any]:
    """What every n says, as JSON data."""
    loaded = load_model(model)
    texts = list(Corpus(corpus, shuffle=True))
    last = int(loaded.info["n_layers"])
    layers: list[Any] = [last // 2, last - 1, "output" if loaded.output else last]
    ran = run(loaded, texts, keep_vectors=layers)
    rows = {layer: ran.vectors[layer].read(0, len(texts)) for layer in layers}
    found = {
        "architecture": loaded.info["architecture"],
        "weights_sha256": loaded.info["weights_sha256"],
        "sentences": len(texts),
        "layers": layers,
        "whole": {str(layer): metrics.anisotropy(moments_of(x)).item() for layer, x in rows.items()},
        "sizes": [of_size(n, rows) for n in SIZES if 2 * n <= len(texts)],
    }
    whole = moments_of(rows[layers[-1]], second_moment=True)
    geometry = metrics.geometry(whole)
    assert geometry is not None
    values = top_eigenvectors(covariance=metrics.covariance(whole), k=3).values[0]
    return found | {
        "participation_ratio": geometry.participation_ratio,
        "rank_me": geometry.rank_me,
        "effective_rank": geometry.effective_rank,
        "population": geometry.population.to_dict(),
        "eigengaps": [1 - float(values[1] / values[0]), 1 - float(values[2] / values[1])],
    }


def of_size(n: int, rows: dict[Any, Tensor]) -> dict[str, Any]:
    """What disjoint samples of n sentences say."""
    samples = min(MOST_SAMPLES, len(next(iter(rows.values()))) // n)
    found: dict[str, Any] = {"n": n, "samples": samples, "anisotropy": {}}
    for layer, x in rows.items():
        moments = [moments_of(part) for part in x[: samples * n].split(n)]
        values = [metrics.anisotropy(one).item() for one in moments]
        errors = [metrics.anisotropy_stderr(one).item() for one in moments]
        found["anisotropy"][str(layer)] = {
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values),
            "stderr": statistics.fmean(errors),
        }
    output = list(rows.values())[-1]
    whole = [moments_of(part, second_moment=True) for part in output[: samples * n].split(n)]
    geometry = [one for moments in whole if (one := metrics.geometry(moments)) is not None]
    axes = [top_eigenvectors(covariance=metrics.covariance(one)[0]).vectors[0] for one in whole]
    pairs = [abs(float(a @ b)) for a, b in itertools.islice(itertools.combinations(axes, 2), 500)]
    return found | {
        "axis_cosine": statistics.fmean(pairs) if pairs else math.nan,
        "participation_ratio": statistics.fmean(one.participation_ratio for one in geometry),
        "rank_me": statistics.fmean(one.rank_me for one in geometry),
        "effective_rank": statistics.fmean(one.effective_rank for one in geometry),
        "corrected": {str(layer): corrected(n, samples, x) for layer, x in rows.items()},
    }


def corrected(n: int, samples: int, x: Tensor) -> dict[str, Any]:
    """What samples of n rows of a layer say of all rows, beside what is true of these.

    The participation ratio corrected for n, and how many of the 95% intervals have that of the whole; the mean
    logarithm of how many times a rank of the whole is that of a sample, to the first order and in truth.
    """
    of = [metrics.geometry(moments_of(part, second_moment=True)) for part in x[: samples * n].split(n)]
    parts = [one for one in of if one is not None]
    whole = metrics.geometry(moments_of(x, second_moment=True))
    assert whole is not None
    truth = whole.population.participation_ratio
    known = [one.population for one in parts if math.isfinite(one.population.participation_ratio)]
    found: dict[str, Any] = {"said": len(known), "whole": truth}
    if len(known) > 1:
        values = [one.participation_ratio for one in known]
        errors = [one.participation_ratio_stderr for one in known]
        held = [abs(value - truth) <= 1.96 * error for value, error in zip(values, errors, strict=True)]
        found |= {"mean": statistics.fmean(values), "spread": statistics.stdev(values)}
        found |= {"stderr": statistics.fmean(errors), "held": statistics.fmean(held)}
    for rank in ("effective_rank", "rank_me"):
        beyond = math.log(whole.values[rank]) + whole.population.lack(rank).estimate
        found[rank] = {
            "lacks_first_order": statistics.fmean(one.population.lack(rank).estimate for one in parts),
            "lacks": statistics.fmean(beyond - math.log(one.values[rank]) for one in parts),
        }
    return found


def moments_of(x: Tensor, *, second_moment: bool = False) -> Moments:
    """The sums of rows (n, d)."""
    moments = Moments.empty("sentence", [0], x.shape[1], second_moment=second_moment)
    moments.update(x)
    return moments


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    text = json.dumps(sample_sizes(chosen.model, chosen.corpus), indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
