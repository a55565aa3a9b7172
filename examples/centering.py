"""Opening the cone: how much of it each method leaves on sentences that it was not fitted on.

python examples/centering.py --model intfloat/e5-small-v2 --corpus sentences.txt --output out.safetensors
"""

from __future__ import annotations

import argparse

from cone_kernels.corpora import Corpus
from cone_kernels.experiments.centering import center_of
from cone_kernels.models import load_model
from cone_kernels.names import METHODS
from cone_kernels.runs.measure import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model's folder, or its id on the hub")
    parser.add_argument("--corpus", required=True, help="sentences: .txt (one a line) or .jsonl")
    parser.add_argument("--limit", type=int, help="only the first so many distinct sentences")
    parser.add_argument("--layer", type=int, default=-1, help="0 is the embeddings, -1 the last layer")
    parser.add_argument("--output", help="where to write the last of the centerings")
    arguments = parser.parse_args()

    sentences = list(Corpus(arguments.corpus, limit=arguments.limit))
    model = load_model(arguments.model)
    # Fitted on every second sentence, measured on the others.
    seen = measure(model, sentences[::2], second_moment=True, keep_vectors=[arguments.layer])
    unseen = measure(model, sentences[1::2], keep_vectors=[arguments.layer])
    for method in METHODS:
        result = center_of(unseen, layer=arguments.layer, method=method, fitted_on=seen, output=arguments.output)
        before, after = result.before.anisotropy, result.after.anisotropy
        print(f"{method:<16} mean cosine {before:7.4f} before, {after:7.4f} after")

    # A centering maps tensors and NumPy arrays of any leading dimensions.
    vectors = next(block for _, block in unseen.vectors[result.layer].blocks())
    print(tuple(vectors.shape), "->", tuple(result.centering(vectors).shape))


if __name__ == "__main__":
    main()
