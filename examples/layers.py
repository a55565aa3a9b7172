"""Where in a model the cone is tight: the mean cosine of two sentences at every layer, with its standard error.

python examples/layers.py --model sentence-transformers/all-MiniLM-L6-v2 --corpus sentences.txt
"""

from __future__ import annotations

import argparse

from cone_kernels.experiments import layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model's folder, or its id on the hub")
    parser.add_argument("--corpus", required=True, help="sentences: .txt (one a line) or .jsonl")
    parser.add_argument("--limit", type=int, help="only the first so many distinct sentences")
    arguments = parser.parse_args()

    result = layers(arguments.model, arguments.corpus, limit=arguments.limit)
    for row in result.layers:
        cosine, stderr = row.sentence.anisotropy, row.sentence.stderr
        print(f"layer {row.layer:>2} {cosine:.4f} ± {stderr:.4f} {'#' * round(40 * cosine)}")
    print(*result.summary(), sep="\n")


if __name__ == "__main__":
    main()
