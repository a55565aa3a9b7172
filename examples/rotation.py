"""Whether two or more models share the axis of their cone, and which of them a centring vector can be handed to.

python examples/rotation.py --model intfloat/e5-small-v2 --model thenlper/gte-small --corpus sentences.txt
"""

from __future__ import annotations

import argparse

from cone_kernels.experiments.rotation import rotation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="a model's folder or hub id; two or more")
    parser.add_argument("--corpus", required=True, help="sentences: .txt (one a line) or .jsonl")
    parser.add_argument("--limit", type=int, help="only the first so many distinct sentences")
    arguments = parser.parse_args()

    result = rotation(arguments.model, arguments.corpus, limit=arguments.limit)
    for i, first in enumerate(result.models):
        for j, second in enumerate(result.models[:i]):
            chance = result.null[i][j]
            by_chance = f"{chance.mean:.3f} by chance" if chance else "widths differ"
            print(f"{second.name} and {first.name}:")
            print(f"  |cos| of the axes    {result.axis_cosine[i][j]:.3f} ({by_chance})")
            print(f"  |r| along the axes   {result.functional_cosine[i][j]:.3f}")
            print(f"  mean cosine of the second less the mean of the first {result.centered_anisotropy[i][j]:.3f}")
    print(*result.summary(), sep="\n")


if __name__ == "__main__":
    main()
