"""The options of a run and of the experiments: what each is called, its default, and the corpus that some describe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cone_kernels.corpora import Corpus, CorpusError, Encoding, Malformed
from cone_kernels.corpora.images import ImageRows, image_rows
from cone_kernels.files import require_local
from cone_kernels.names import Layer, TextFormat, pooling_names

if TYPE_CHECKING:
    import torch

    from cone_kernels.runs.progress import Progress
    from cone_kernels.runs.token_sums import TokenSums


class CorpusOptions(TypedDict, total=False):
    """The keywords that say which sentences of a file are read, and how."""

    limit: int | None
    """Only the first so many distinct sentences."""
    field: str | Sequence[str] | None
    """The field or fields of records, or columns of tables, to read."""
    sample: int | None
    """So many of the distinct sentences, drawn uniformly."""
    shuffle: bool
    """In an order drawn by chance, so that neighbours are not alike and errors are right; all are in memory."""
    seed: int | None
    """Of the sample and the order; default 0."""
    group_by: str | None
    """A field that says which sentences belong together, such as a document's id: they share a jackknife group."""
    dedup: bool
    """Leave out the sentences that came before (default)."""
    format: TextFormat | None
    """Of standard input: one of `cone_kernels.names.TEXT_FORMATS`."""
    delimiter: str | None
    """What separates the cells of `.csv` and `.tsv` files; None for a comma, or a tab."""
    encoding: str
    """Of files of text; default "utf-8"."""
    errors: Encoding
    """Text that is not of the encoding: "replace" (default), "drop" or "raise"."""
    malformed: Malformed
    """Records that are no object or lack a field: "drop" (default) or "raise"."""


class LoadOptions(TypedDict, total=False):
    """The keywords of `load_model`, for a model given as a folder or a hub id; and what one in memory lacks."""

    tokenizer: Any
    """Of a model of transformers that is in memory already, which has none with it."""
    processor: Any
    """Of a model of images that is in memory already: what makes its input of them, as its image processor."""
    device: str | torch.device | None
    """Where the model runs; None takes the first GPU, or the CPU."""
    dtype: str | torch.dtype
    """What the model computes in; default "float32"."""
    revision: str | None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool
    """Run the Python code that a model may bring along."""
    attention: str | None
    """One of transformers' implementations: "sdpa", "eager", "flash_attention_2", ..., or "varlen", torch's own for
    packed batches; None takes transformers' choice, and "varlen" with `packed` on a GPU in 16 bits."""
    torch_compile: bool
    """Compile the model's blocks by torch.compile; default False."""
    prompt: str | None
    """A text to put before every sentence, "" for none; None takes the folder's default prompt, as `encode` does."""
    prompt_name: str | None
    """The name of one of the folder's prompts, in place of `prompt`."""
    truncate_dim: int | None
    """Keep so many first dimensions of the model's own output; None is what the folder says."""
    gguf_file: str | None
    """The name of the GGUF file that is the model, of a hub id or of a folder with several."""


class MeasureOptions(CorpusOptions, LoadOptions, total=False):
    """The keywords that every experiment takes; the command line's flags have the same names."""

    baseline: str | None
    """In place of the model its baseline, one of `cone_kernels.names.BASELINES`: "random-weights", the same
    architecture before training, or "shuffled-tokens", the model on the tokens of the corpus in random order."""
    backend: str
    """"auto" (default), "reference", "cpu", "triton" or "cuda"."""
    token_budget: int | Literal["auto"] | None
    """Tokens of a batch at most; None is 4096 on a CPU and 65536 on a GPU. "auto" tries on the first sentences which is
    fastest; that depends on the clock, and with it the last bits of the result. A sentence longer than the budget is a
    batch of its own."""
    packed: bool
    """Fill batches with sentences of any length, one after the other in one row; needs an attention that keeps them
    apart (see `attention`), which is tested on the first sentences; default False."""
    progress: Callable[[Progress], None] | None
    """Called after every batch."""
    log_json: str | os.PathLike[str] | None
    """Progress as JSON lines, appended to this file; "-" is stderr."""


class SharedOptions(MeasureOptions, total=False):
    """The keywords of every experiment that runs a model: many processes, checkpoints."""

    threads: int | None
    """CPU threads of a process; None takes all, or its share of them where there are several workers."""
    shard_size: int | None
    """Sentences of a shard, which are tokenized and cut into batches together; None is 8192 on a CPU and 65536 on a
    GPU. Equal bits need equal shards."""
    workers: int | None
    """So many processes on this machine, on a GPU each where there are several."""
    ray: int | None
    """So many tasks of Ray, on the cluster that RAY_ADDRESS names or on this machine; needs the extra `ray`."""
    distributed: bool
    """Share the work with the other ranks of torchrun; all get the same result, and rank 0 alone writes it."""
    checkpoint: str | os.PathLike[str] | None
    """A file that the run so far is written to now and then, and at an interruption; FILE.0-of-4 of the first of four
    processes, FILE.model-0 of the first of several models. Sentence vectors that are kept are written next to it, those
    of layer 6 to FILE.layer-6."""
    checkpoint_every: float | None
    """Seconds between two checkpoints at least; None is 300, and 0 writes one after every shard."""
    resume: bool
    """Go on from the checkpoint, where there is one."""


class ShardOptions(SharedOptions, total=False):
    """The keywords of experiments that need the sums alone, so that one process can run some of the shards alone."""

    overwrite: bool
    """Replace the file of `save_state` if there is one; without it a file that is there, maybe of another run, is
    refused."""
    shard: str | None
    """"i/n": run the shards of process i of n alone, i from 0, and only read the others; the file saved is a `RunPart`,
    for `cone_kernels.runs.part.merge`."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one process runs a model over a corpus, and what it gathers.

    Attributes:
        token_budget, packed, shard_size, backend, threads, shard, checkpoint, checkpoint_every, resume, progress: as
            the keywords of these names in `ShardOptions`.
        batch_size: sentences of a batch at most; None leaves that to the budget.
        second_moment, unit_second_moment, before_final_norm, pooling, poolings, strict: as in `ConeProbe`.
        keep_vectors: layers whose sentence vectors are kept, in temporary files; -1 is the last one, and "output" are
            the vectors that the model itself gives.
        token_sums: gathers the tokens by class; of a run in one process and without a checkpoint.
        vectors_prefix: keep them in files that stay, those of layer 3 in PREFIX.layer-3; a checkpoint takes its place.

    Raises:
        ValueError: an option is out of range, unknown, or does not go with another one.

    Examples:
        >>> RunOptions(shard="0/3").process
        (0, 3)
    """

    token_budget: int | Literal["auto"] | None = None
    batch_size: int | None = None
    packed: bool = False
    shard_size: int | None = None
    second_moment: bool = False
    unit_second_moment: bool = False
    before_final_norm: bool = False
    pooling: str = "mean"
    poolings: str | Sequence[str] = ()
    keep_vectors: Sequence[Layer] = ()
    vectors_prefix: str | os.PathLike[str] | None = None
    token_sums: TokenSums | None = None
    strict: bool = False
    backend: str = "auto"
    threads: int | None = None
    shard: str | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float | None = None
    resume: bool = False
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        require_local("checkpoint", self.checkpoint)
        for name in ("token_budget", "batch_size", "shard_size", "threads"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: got {value}; it must be at least 1")
        if isinstance(self.token_budget, str) and self.token_budget != "auto":
            raise ValueError(f'token_budget: got {self.token_budget!r}; it must be a number, "auto" or None')
        if self.checkpoint_every is not None and not self.checkpoint_every >= 0:
            raise ValueError(f"checkpoint_every: got {self.checkpoint_every}; it must be 0 or more seconds")
        _, processes = self.process
        if self.token_budget == "auto" and processes > 1:
            raise ValueError(
                f"token_budget: got 'auto' with shard {self.shard!r}; it must be a number, as each process would find "
                "one of its own"
            )
        if self.token_sums is not None and (processes > 1 or self.checkpoint):
            name = "shard" if processes > 1 else "checkpoint"
            raise ValueError(
                f"{name}: got {getattr(self, name)} with token_sums, which one whole run gathers; leave it out"
            )
        if self.resume and not self.checkpoint:
            raise ValueError("resume: got True without a checkpoint; name the file of the run to go on with")
        pooling_names([self.pooling])
        pooling_names(self.poolings)

    @property
    def process(self) -> tuple[int, int]:
        """(i, n): the shards of process i of n are run, i from 0; (0, 1) runs all."""
        return parsed_shard(self.shard or "0/1")


def parsed_shard(shard: str) -> tuple[int, int]:
    """(i, n) of "i/n": process i of n, counted from 0.

    Raises:
        ValueError: it is not of this form, or i is not below n.

    Examples:
        >>> parsed_shard("0/3")
        (0, 3)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"shard: got {shard!r}; it must be i/n with i from 0 to n - 1, such as 0/3")
    return int(found[1]), int(found[2])


_LONGEST_PATH = 4096

CORPUS_OPTIONS = tuple(CorpusOptions.__annotations__)
LOAD_OPTIONS = tuple(LoadOptions.__annotations__)

RUN_OPTIONS = tuple(
    option.name for option in fields(RunOptions) if option.name in ShardOptions.__annotations__.keys() - {"progress"}
)
"""The keywords of an experiment that are options of the run in one process, but for `progress`."""

DEFAULTS: dict[str, Any] = {
    "limit": None,
    "field": None,
    "sample": None,
    "shuffle": False,
    "seed": None,
    "group_by": None,
    "dedup": True,
    "format": None,
    "delimiter": None,
    "encoding": "utf-8",
    "errors": "replace",
    "malformed": "drop",
    "tokenizer": None,
    "processor": None,
    "device": None,
    "dtype": "float32",
    "revision": None,
    "trust_remote_code": False,
    "attention": None,
    "torch_compile": False,
    "prompt": None,
    "prompt_name": None,
    "truncate_dim": None,
    "gguf_file": None,
    "baseline": None,
    "log_json": None,
    "workers": None,
    "ray": None,
    "distributed": False,
    "overwrite": False,
    **{option.name: option.default for option in fields(RunOptions) if option.name in RUN_OPTIONS},
}
"""What every keyword of an experiment but `progress` is where it is not given."""


def refuse_replacing(path: str | os.PathLike[str] | None, overwrite: bool, name: str = "save_state") -> None:
    """Refuses to save a state to a remote place, or in place of a file that may be another run's.

    Args:
        path: of the state; None saves none.
        overwrite: a file that is there is replaced.
        name: of the argument that the path was given as.

    Raises:
        FileExistsError: there is one.
        ValueError: it is a URL.
    """
    require_local(name, path)
    if path is not None and not overwrite and os.path.isfile(path):
        raise FileExistsError(
            f"{name}: {os.fspath(path)} is there already, and may be of another run; overwrite=True (--overwrite) "
            "replaces it, or name another file"
        )


def refuse_unknown_options(options: Mapping[str, Any]) -> None:
    """Refuses a keyword that is no option of an experiment.

    Raises:
        TypeError: an option is none of `ShardOptions`.
    """
    unknown = sorted(set(options) - set(ShardOptions.__annotations__))
    if unknown:
        raise TypeError(f"options: got {', '.join(unknown)}; they must be of {', '.join(ShardOptions.__annotations__)}")


def refuse_run_options(options: MeasureOptions) -> None:
    """Refuses the options of a run where a saved state is all that is looked at, and they would be ignored.

    Raises:
        ValueError: an option is not at its default.
    """
    asked = [name for name, value in options.items() if name in DEFAULTS and value != DEFAULTS[name]]
    if asked:
        raise ValueError(f"{', '.join(asked)}: got a value together with a state; nothing is run, so leave it out")


def with_checkpoint_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one of several runs, with a checkpoint of its own: FILE.NAME.

    Examples:
        >>> with_checkpoint_of("0-of-4", {"checkpoint": "run.ckpt"})
        {'checkpoint': 'run.ckpt.0-of-4'}
    """
    file = options.get("checkpoint")
    return {**options, **({} if file is None else {"checkpoint": f"{os.fspath(file)}.{name}"})}


def options_by_model(options: SharedOptions, models: int) -> list[Any]:
    """The options of the run of each of several models over one corpus that is open already.

    Args:
        options: those of the experiment.
        models: how many models there are.

    Returns:
        For each model the options but those of the corpus; each has a checkpoint of its own, FILE.model-0 and so on.
    """
    rest = {name: value for name, value in options.items() if name not in CORPUS_OPTIONS}
    return [rest if models == 1 else with_checkpoint_of(f"model-{number}", rest) for number in range(models)]


def rank_of(options: SharedOptions) -> int:
    """The number of this process among those of torchrun that share the work; 0 where they do not."""
    if not options.get("distributed"):
        return 0
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def open_corpus(
    corpus: str | os.PathLike[str] | Corpus | Iterable[Any], options: MeasureOptions, *, again: bool = False
) -> Corpus:
    """The `Corpus` of a file or of sentences, read as the options say.

    Args:
        corpus: a path that `Corpus` can read, a `Corpus`, sentences, or records that have them in fields; or a list of
            images of PIL, or a data set with a column of them.
        options: those of `CorpusOptions` are used.
        again: it will be read more than once, so sentences that can be read only once are kept.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the file cannot be read, or not more than once.
        ValueError: options of a corpus are given together with a `Corpus`, or a format with sentences.
    """
    chosen = _corpus_options(options)
    if isinstance(corpus, Corpus):
        if any(chosen[name] != DEFAULTS[name] for name in CORPUS_OPTIONS):
            raise ValueError(f"corpus: got a Corpus and options of one; give {', '.join(CORPUS_OPTIONS)} to it")
        return _readable(corpus, again)
    if isinstance(corpus, (str, os.PathLike)):
        return _readable(open_files([corpus], options), again)
    _refuse_names_of_files(corpus)
    found = image_rows(corpus, chosen["field"][0] if chosen["field"] and len(chosen["field"]) == 1 else None)
    if found is not None:
        return _corpus_of(found, chosen)
    field = chosen.pop("field")
    for name in ("format", "delimiter", "encoding"):
        if (given := chosen.pop(name)) != DEFAULTS[name]:
            raise ValueError(f"{name}: got {given!r}; sentences given in Python have no {name}")
    # What cannot be iterated over again is kept.
    once = again and iter(corpus) is corpus
    return Corpus.from_sentences(list(corpus) if once else corpus, fields=field, **chosen)


def _corpus_of(found: ImageRows, chosen: dict[str, Any]) -> Corpus:
    """A corpus of images in memory.

    Raises:
        ValueError: an option is given that is of texts alone.
    """
    for name in ("group_by", "format", "delimiter", "encoding", "errors", "malformed"):
        if (given := chosen.pop(name)) != DEFAULTS[name]:
            raise ValueError(f"{name}: got {given!r} with images given in Python; it must be left out")
    del chosen["field"]
    return Corpus.from_sentences(found, name="<images>", **chosen)


def refuse_images(corpus: Corpus) -> None:
    """Raises ValueError where a corpus is of images: what lies along an axis is told by the tokens of texts."""
    if corpus.of_images:
        raise ValueError("corpus: got images; it must be texts for what lies along an axis; `rotation` takes images")


def _refuse_names_of_files(corpus: Iterable[Any]) -> None:
    """Refuses what would measure the names of files in place of the sentences in them.

    Raises:
        TypeError: a path is among the sentences.
        ValueError: each of the sentences is the name of a file that is there.
    """
    if not isinstance(corpus, (list, tuple)) or not corpus:
        return
    paths = [os.fspath(one) for one in corpus if isinstance(one, os.PathLike)]
    if paths or all(isinstance(one, str) and 0 < len(one) < _LONGEST_PATH and os.path.isfile(one) for one in corpus):
        error, named = (TypeError, paths[0]) if paths else (ValueError, corpus[0])
        raise error(
            f"corpus: got names of files in a {type(corpus).__name__}, such as {named!r:.80}; it must be sentences: "
            "Corpus([...]) reads several files, Corpus.from_sentences([...]) takes the names themselves"
        )


def open_files(paths: Sequence[str | os.PathLike[str]], options: MeasureOptions) -> Corpus:
    """One corpus of several files, or whatever else `Corpus` can read, in the order of the paths.

    Args:
        paths: of the files.
        options: those of `CorpusOptions` are used.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError, ValueError: as `Corpus`.
    """
    chosen = _corpus_options(options)
    return Corpus(paths, fields=chosen.pop("field"), **chosen)


def _corpus_options(options: MeasureOptions) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in CORPUS_OPTIONS}
    return chosen | ({"field": [chosen["field"]]} if isinstance(chosen["field"], str) else {})


def _readable(corpus: Corpus, again: bool) -> Corpus:
    if again and corpus.read_once:
        kept = "a list" if corpus.read_once_because == "an iterator" else "a file"
        what = f"got {corpus.read_once_because}, which can be read once, and this reads it again"
        raise CorpusError(f"corpus: {what}; give {kept}")
    return corpus
