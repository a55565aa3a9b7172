"""Every name that a user gives or reads, with its words: one dict for each kind, read by all that computes, shows or
writes it. Neither torch nor transformers is loaded, so the command line can list them at once.

A new name starts here; docs/adding_a_pooling.md and its neighbours say what else it takes, and tests/test_names.py
fails where one of the two sides is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

InRun: TypeAlias = Literal["each model", "all models", "each method"]
CenteringMethod: TypeAlias = Literal["mean", "all-but-the-top", "whitening"]
TextFormat: TypeAlias = Literal["txt", "jsonl", "csv", "tsv"]
Format: TypeAlias = Literal[TextFormat, "parquet", "arrow"]
VectorFormat: TypeAlias = Literal[
    "npy",
    "npz",
    "safetensors",
    "parquet",
    "arrow",
    "jsonl",
    "fvecs",
    "bvecs",
    "fbin",
    "u8bin",
    "i8bin",
    "word2vec",
    "faiss",
    "dataset",
]
Layer: TypeAlias = int | Literal["output"]
"""A layer by its number in `hidden_states`, counted from the end where it is negative; or the model's own output."""

OUTPUT: Literal["output"] = "output"
"""The row after the layers: the vectors that the model itself gives for sentences, as `encode` does."""

MODEL_POOLING = "model"
"""Where a pooling is asked for: the one that a model of sentence-transformers has itself."""


@dataclass(frozen=True)
class Experiment:
    """What an experiment is called and what it asks.

    Its name is that of its module in `cone_kernels.experiments` and of its results in JSON.

    Attributes:
        heading: above its section of the report.
        question: what it answers.
        command: what it is called on the command line.
        in_run: how `cone run` makes it: of each model, of all models together, or of each model by each method of
            centring; None where it is no part of a run.
    """

    heading: str
    question: str
    command: str
    in_run: InRun | None = None

    @property
    def function(self) -> str:
        """Its function in Python, and the module of its command: the command's name with underscores."""
        return self.command.replace("-", "_")


@dataclass(frozen=True)
class Pooling:
    """How the vector of a sentence is made of its tokens; the function is in `cone_kernels.state.poolings`.

    Attributes:
        label: in the headings of tables and figures.
        phrase: in a sentence, after "the cone of".
    """

    label: str
    phrase: str


@dataclass(frozen=True)
class Method:
    """A way to open the cone; `cone_kernels.centering` fits it.

    Attributes:
        label: in tables and figures.
        help: what it does, as the command line says it.
    """

    label: str
    help: str


@dataclass(frozen=True)
class Measure:
    """What says how well cosines go with labels.

    Attributes:
        label: in tables and figures.
        phrase: in a sentence.
        takes: what the labels are.
    """

    label: str
    phrase: str
    takes: str


@dataclass(frozen=True)
class Variable:
    """What the projections on an axis are correlated with.

    Attributes:
        label: in tables and figures.
        phrase: in a sentence.
    """

    label: str
    phrase: str


@dataclass(frozen=True)
class TokenDivision:
    """By what the tokens of a corpus are divided into classes; `cone_kernels.runs.token_sums` sums each.

    Attributes:
        label: in tables.
        phrase: in a sentence, after "by".
        classes: their names in order; the tokenizer names further ones of the special tokens. A norm is a multiple of
            where the class of the median token begins, and each class ends at twice its beginning.
    """

    label: str
    phrase: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class GeometryMetric:
    """A number that says how the vectors of a layer spread; a field of `cone_kernels.metrics.Geometry`.

    Attributes:
        label: in the report.
        heading: in the narrow table of the terminal.
        shown: as a count of directions, a score from 0 to 1, or a share in percent.
    """

    label: str
    heading: str
    shown: Literal["directions", "score", "share"]


EXPERIMENTS = {
    "layers": Experiment("Layers", "How tight is the cone at every layer?", "layers", "each model"),
    "pooling": Experiment("Pooling", "How much of the cone comes from averaging tokens?", "pooling", "each model"),
    "axis": Experiment("Axis", "What lies along the main axis of the cone?", "axis", "each model"),
    "tokens": Experiment("Tokens", "Which tokens make the cone?", "tokens"),
    "rotation": Experiment("Rotation", "Do models share their axis?", "rotation", "all models"),
    "centering": Experiment("The fix", "What does centring do to the cone?", "center", "each method"),
    "vectors": Experiment("Vectors", "How tight is the cone of vectors that are there already?", "vectors"),
    "compare": Experiment("Comparison", "Did the cone change?", "compare"),
    "rows": Experiment("Row by row", "Do two sources give the same vectors?", "rows"),
    "modality_gap": Experiment("Modality gap", "How far apart are the cones of images and texts?", "modality-gap"),
}

POOLINGS = {
    "mean": Pooling("mean of all tokens", "the mean"),
    "mean_without_special": Pooling("mean, no special tokens", "the mean without special tokens"),
    "cls": Pooling("first token (CLS)", "the first token"),
    "last": Pooling("last token", "the last token"),
    "max": Pooling("maximum", "the maximum"),
    "weighted_mean": Pooling("weighted mean", "the position-weighted mean"),
    "drawn_token": Pooling("one drawn token, no special", "one drawn token"),
}

METHODS: dict[CenteringMethod, Method] = {
    "mean": Method("mean removal", "subtract the mean"),
    "all-but-the-top": Method("all but the top", "also project out the top directions"),
    "whitening": Method("whitening", "whiten"),
}

# How the quality of vectors is judged by labelled pairs; `cone_kernels.statistics.ranking` computes each. There is also
# "recall@K", for any K.
MEASURES = {
    "auc": Measure("AUC", "the AUC", "labels of two kinds, entailment against all else among them"),
    "spearman": Measure("Spearman", "Spearman's correlation", "graded scores"),
    "mrr": Measure("MRR", "the mean reciprocal rank", "a query and a relevant text"),
}

# What `quality` judges: the methods above, and softer ones; `cone_kernels.experiments.quality_fits` fits them.
QUALITY_METHODS = {
    "mean": METHODS["mean"],
    "partial-mean": Method("half the mean", "subtract half of the mean"),
    "all-but-the-top": METHODS["all-but-the-top"],
    "all-but-the-top-eigengap": Method("all but the top, by gap", "as many directions as the eigengap says"),
    "whitening": METHODS["whitening"],
}

# What is said of quality where there are no labelled pairs, and beside each centring of a run that has some.
QUALITY_NOT_MEASURED = (
    "Whether the vectors serve better centred is not measured: a small mean cosine is no quality; labelled pairs tell. "
    "Give them by pairs=FILE (--pairs FILE)."
)
QUALITY_SAID_BY_THE_RUN = "Whether the vectors serve better centred is what the labelled pairs of this run tell."

# What a model may be compared with; `cone_kernels.models.baseline` makes each.
BASELINES = {
    "random-weights": "the same architecture with random weights",
    "shuffled-tokens": "the model on its tokens in random order",
}

VARIABLES = {
    "length": Variable("sentence length", "sentence length in tokens"),
    "token_frequency": Variable("frequency of its tokens", "mean log frequency of the sentence's tokens in the corpus"),
    "norm": Variable("norm of its vector", "norm of the sentence vector"),
}

TOKEN_DIVISIONS = {
    "special": TokenDivision("special tokens", "what they are", ("text",)),
    "position": TokenDivision(
        "place",
        "their place in the sentence",
        ("first", "second", "3 to 4", "5 to 8", "9 to 16", "17 to 32", "33 to 64", "65 and on", "last"),
    ),
    "frequency": TokenDivision(
        "rank",
        "how common they are in the corpus",
        ("special", "1 to 10", "11 to 100", "101 to 1,000", "1,001 to 10,000", "10,001 and on"),
    ),
    "norm": TokenDivision(
        "norm", "their norm", ("below 0.5", "0.5 to 1", "1 to 2", "2 to 4", "4 to 8", "8 to 16", "16 and more")
    ),
}

GEOMETRY = {
    "participation_ratio": GeometryMetric("participation ratio", "PR", "directions"),
    "iso_score": GeometryMetric("IsoScore", "IsoScore", "score"),
    "explained_variance_ratio": GeometryMetric("variance along the axis", "λ1 share", "share"),
    "effective_rank": GeometryMetric("effective rank", "eff. rank", "directions"),
    "rank_me": GeometryMetric("RankMe", "RankMe", "directions"),
}

# Formats of a corpus by suffix, and what a file of one holds; `cone_kernels.corpora` reads them.
FORMATS: dict[Format, str] = {
    "txt": "one sentence a line",
    "jsonl": "one JSON object, or an array of them, a line",
    "csv": "comma-separated records under a header",
    "tsv": "tab-separated records under a header, without quotes",
    "parquet": "columns of strings",
    "arrow": "columns of strings, as a file or a stream",
}
# Endings of files of images, a folder of which is a corpus for a model of images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_FORMATS: tuple[TextFormat, ...] = get_args(TextFormat)


@dataclass(frozen=True)
class VectorFileKind:
    """How files of vectors are told apart.

    Attributes:
        endings: of their names; none for a folder.
        holds: what is in one.
    """

    endings: tuple[str, ...]
    holds: str


# Formats of vectors; `cone_kernels.vector_files` reads them.
VECTOR_FORMATS: dict[VectorFormat, VectorFileKind] = {
    "npy": VectorFileKind((".npy",), "an array of NumPy"),
    "npz": VectorFileKind((".npz",), "arrays of NumPy, by name"),
    "safetensors": VectorFileKind((".safetensors",), "tensors, by name"),
    "parquet": VectorFileKind((".parquet",), "a column of lists"),
    "arrow": VectorFileKind((".arrow", ".feather", ".ipc"), "a column of lists, as a file or a stream"),
    "jsonl": VectorFileKind((".jsonl",), "one JSON array a line, or an object with one"),
    "fvecs": VectorFileKind((".fvecs",), "rows of float32, each after its width"),
    "bvecs": VectorFileKind((".bvecs",), "rows of uint8, each after its width"),
    "fbin": VectorFileKind((".fbin",), "float32 after the number of rows and their width"),
    "u8bin": VectorFileKind((".u8bin",), "uint8 after the number of rows and their width"),
    "i8bin": VectorFileKind((".i8bin",), "int8 after the number of rows and their width"),
    "word2vec": VectorFileKind((".bin",), "words, each with float32, after their number and width in a line of text"),
    "faiss": VectorFileKind((".faiss", ".index"), "a faiss index that gives its vectors back"),
    "dataset": VectorFileKind((), "a folder that Hugging Face's datasets saved"),
}


def measure_kind(measure: str) -> str:
    """What labels a measure takes: "auc", "spearman", or "retrieval" for "mrr" and "recall@K".

    Raises:
        ValueError: it is none of them.

    Examples:
        >>> measure_kind("recall@10")
        'retrieval'
    """
    name, at, k = measure.partition("@")
    if at and name == "recall" and k.isdecimal() and int(k) > 0:
        return "retrieval"
    if measure not in MEASURES:
        raise ValueError(f"measure: got {measure!r}; it must be one of {', '.join(MEASURES)}, or recall@K")
    return "retrieval" if measure == "mrr" else measure


def measure_label(measure: str) -> str:
    """A measure in tables and figures.

    Examples:
        >>> measure_label("auc"), measure_label("recall@10")
        ('AUC', 'recall@10')
    """
    return MEASURES[measure].label if measure in MEASURES else measure


def measure_phrase(measure: str) -> str:
    """A measure in a sentence."""
    return MEASURES[measure].phrase if measure in MEASURES else measure


class _Labelled(Protocol):
    @property
    def label(self) -> str: ...


def label_of(kind: Mapping[str, _Labelled], name: str) -> str:
    """The label of a name of one of the dicts above; a name that only another version knows is shown in plain words.

    Examples:
        >>> label_of(POOLINGS, "cls"), label_of(POOLINGS, "first_four")
        ('first token (CLS)', 'first four')
    """
    return kind[name].label if name in kind else spaced(name)


def is_share(metric: str) -> bool:
    """Whether a metric of `GEOMETRY` is a share of one, shown in percent."""
    return metric in GEOMETRY and GEOMETRY[metric].shown == "share"


def spaced(name: str) -> str:
    """The name with blanks, as the terminal heads a column with it."""
    return name.replace("_", " ")


def experiments_in_run(how: InRun | None = None) -> list[str]:
    """The experiments that `cone run` makes, in the order of the report; those made this way alone where one is named.

    Examples:
        >>> experiments_in_run("each model")
        ['layers', 'pooling', 'axis']
    """
    return [name for name, about in EXPERIMENTS.items() if about.in_run and how in (None, about.in_run)]


def place(layer: Layer) -> str:
    """A layer in a sentence, after "of" or "at".

    Examples:
        >>> place(6), place("output")
        ('layer 6', 'the output')
    """
    return "the output" if layer == OUTPUT else f"layer {layer}"


def numbered(chosen: Sequence[int], numbers: Sequence[int]) -> str:
    """Some layers in a sentence, after "at": runs of three or more as one.

    Args:
        chosen: their numbers, in order.
        numbers: of all layers there are, in order.

    Examples:
        >>> numbered([1, 3, 4, 5], range(7)), numbered([2], range(7)), numbered([0, 1], range(2))
        ('layers 1 and 3 to 5', 'layer 2', 'every layer')
    """
    if len(chosen) == len(numbers) > 1:
        return "every layer"
    runs: list[list[int]] = []
    neighbours = False
    for number in numbers:
        if number in chosen and neighbours:
            runs[-1].append(number)
        elif number in chosen:
            runs.append([number])
        neighbours = number in chosen
    parts = [
        part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(one) for one in run])
    ]
    return f"layer{'s' if len(chosen) > 1 else ''} {listed_words(parts)}"


def listed_words(parts: Sequence[str]) -> str:
    """Words in a row: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def prompt_in_words(prompt: str | None) -> str:
    """With which prompt sentences were given to a model, in a sentence.

    Examples:
        >>> prompt_in_words("query: "), prompt_in_words(None)
        ('with the prompt “query: ”', 'without a prompt')
    """
    return f"with the prompt “{prompt}”" if prompt else "without a prompt"


def listed_suffixes() -> str:
    """The suffixes of the formats in words.

    Examples:
        >>> listed_suffixes()
        '.txt, .jsonl, .csv, .tsv, .parquet or .arrow'
    """
    *first, last = (f".{name}" for name in FORMATS)
    return f"{', '.join(first)} or {last}"


def pooling_names(poolings: str | Sequence[str]) -> tuple[str, ...]:
    """The names in the order of `POOLINGS`; "all" stands for all of them.

    Raises:
        ValueError: a name is unknown, or given twice.

    Examples:
        >>> pooling_names(["max", "mean"])
        ('mean', 'max')
    """
    given = [poolings] if isinstance(poolings, str) else list(poolings)
    if given == ["all"]:
        return tuple(POOLINGS)
    # A list, for what is given need not be hashable.
    unknown = [name for name in given if name not in list(POOLINGS)]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ValueError(f'pooling: got {listed}; each must be one of {", ".join(POOLINGS)}, or "all" alone')
    if len(set(given)) != len(given):
        raise ValueError(f"pooling: got {', '.join(given)}; each must be named once")
    return tuple(name for name in POOLINGS if name in given)


def asked_poolings(poolings: str | Sequence[str]) -> tuple[str, ...]:
    """As `pooling_names`, of names that may have `MODEL_POOLING` among them, which comes last.

    Raises:
        ValueError: no name, an unknown one, or one that is given twice.

    Examples:
        >>> asked_poolings(["model", "mean"])
        ('mean', 'model')
    """
    given = [poolings] if isinstance(poolings, str) else list(poolings)
    own = [name for name in given if name == MODEL_POOLING]
    if len(own) > 1:
        raise ValueError(f"pooling: got {', '.join(map(str, given))}; each must be named once")
    names = (*pooling_names([name for name in given if name != MODEL_POOLING]), *own)
    if not names:
        raise ValueError("pooling: got none; it must name at least one")
    return names
