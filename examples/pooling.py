"""How much of a model's cone is made by pooling: tokens against sentences, and the poolings side by side.

python examples/pooling.py --model sentence-transformers/all-MiniLM-L6-v2 --corpus sentences.txt
"""

from __future__ import annotations

import argparse

from cone_kernels.experiments import pooling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model's folder, or its id on the hub")
    parser.add_argument("--corpus", required=True, help="sentences: .txt (one a line) or .jsonl")
    parser.add_argument("--limit", type=int, help="only the first so many distinct sentences")
    arguments = parser.parse_args()

    result = pooling(arguments.model, arguments.corpus, limit=arguments.limit, pooling="all")
    for row in result.layers:
        print(
            f"layer {row.layer}: gap {row.gap.value:+.3f} ± {row.gap.stderr:.3f}, predicted {row.predicted.value:.3f}"
        )
        print("  " + ", ".join(f"{name} {level.anisotropy:.3f}" for name, level in row.poolings.items()))
    print(*result.summary(), sep="\n")


if __name__ == "__main__":
    main()
