"""What tells the sentences of a corpus apart most, in a model's eyes: the ends of its first principal axes.

python examples/axis.py --model sentence-transformers/all-MiniLM-L6-v2 --corpus sentences.txt --k 3
"""

from __future__ import annotations

import argparse

from cone_kernels.experiments import axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model's folder, or its id on the hub")
    parser.add_argument("--corpus", required=True, help="sentences: .txt (one a line) or .jsonl")
    parser.add_argument("--limit", type=int, help="only the first so many distinct sentences")
    parser.add_argument("--layer", type=int, default=-1, help="0 is the embeddings, -1 the last layer")
    parser.add_argument("--k", type=int, default=3, help="how many axes")
    arguments = parser.parse_args()

    result = axis(arguments.model, arguments.corpus, limit=arguments.limit, layer=arguments.layer, k=arguments.k)
    for number, component in enumerate(result.components, start=1):
        print(f"axis {number}: {component.explained_variance_ratio:.1%} of the variance")
        print("  up:   ", " | ".join(sentence.text for sentence in component.top[:3]))
        print("  down: ", " | ".join(sentence.text for sentence in component.bottom[:3]))
        print("  tokens up:  ", " ".join(token.token for token in component.tokens_top[:8]))
        print("  tokens down:", " ".join(token.token for token in component.tokens_bottom[:8]))
    print(*result.summary(), sep="\n")


if __name__ == "__main__":
    main()
