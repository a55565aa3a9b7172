"""The options of the experiments: what each is called, its default, and the corpus that some of them describe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from cone_kernels.corpora import Corpus, CorpusError, Encoding, Malformed
from cone_kernels.names import TextFormat

if TYPE_CHECKING:
    import torch

    from cone_kernels.runs.progress import Progress


class MeasureOptions(TypedDict, total=False):
    """The keywords that every experiment takes; the command line's flags have the same names."""

    limit: int | None
    """Only the first so many distinct sentences."""
    field: Sequence[str] | None
    """The fields of records, or columns of tables, to read."""
    sample: int | None
    """So many of the distinct sentences, drawn uniformly."""
    seed: int | None
    """Of the sample; default 0."""
    dedup: bool
    """Leave out the sentences that came before (default)."""
    format: TextFormat | None
    """Of standard input: one of `cone_kernels.names.TEXT_FORMATS`."""
    errors: Encoding
    """Text that is not UTF-8: "replace" (default), "drop" or "raise"."""
    malformed: Malformed
    """Records that are no object or lack a field: "drop" (default) or "raise"."""
    device: str | torch.device | None
    """Where the model runs; None takes the first GPU, or the CPU."""
    dtype: str | torch.dtype
    """What the model computes in; default "float32"."""
    revision: str | None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool
    """Run the Python code that a model may bring along."""
    attention: str | None
    """One of transformers' implementations: "sdpa", "eager", "flash_attention_2", ...; None takes its choice."""
    torch_compile: bool
    """Compile the model's blocks by torch.compile; default False."""
    backend: str
    """"auto" (default), "reference", "cpu", "triton" or "cuda"."""
    token_budget: int | Literal["auto"] | None
    """Tokens of a batch at most; None is 4096 on a CPU and 65536 on a GPU, "auto" tries."""
    packed: bool
    """Sentences of a batch follow each other in one row; needs flash attention; default False."""
    progress: Callable[[Progress], None] | None
    """Called after every batch."""
    log_json: str | os.PathLike[str] | None
    """Progress as JSON lines, appended to this file; "-" is stderr."""


class SharedOptions(MeasureOptions, total=False):
    """The keywords of every experiment that runs a model: many processes, checkpoints."""

    threads: int | None
    """CPU threads of a process; None takes all, or its share of them where there are several workers."""
    shard_size: int | None
    """Sentences of a shard; None is 8192. Equal bits need equal shards."""
    workers: int | None
    """So many processes on this machine, on a GPU each where there are several."""
    ray: int | None
    """So many tasks of Ray, on the cluster that RAY_ADDRESS names or on this machine; needs the extra `ray`."""
    distributed: bool
    """Share the work with the other ranks of torchrun; all get the same result, and rank 0 alone writes it."""
    checkpoint: str | os.PathLike[str] | None
    """A file that the run so far is written to now and then, and at an interruption; FILE.0-of-4 of the first of four
    processes, FILE.model-0 of the first of several models, and beside it kept sentence vectors, FILE.layer-6."""
    checkpoint_every: float | None
    """Seconds between two checkpoints at least; default 300."""
    resume: bool
    """Go on from the checkpoint, where there is one."""


class ShardOptions(SharedOptions, total=False):
    """The keywords of experiments that need the sums alone: also one part of a run, to be merged with the others."""

    shard: str | None
    """"i/n": the shards of process i of n alone; the state saved is a part for `cone_kernels.runs.part.merge`."""


CORPUS_OPTIONS = ("limit", "field", "sample", "seed", "dedup", "format", "errors", "malformed")

DEFAULTS: dict[str, Any] = {
    "limit": None,
    "field": None,
    "sample": None,
    "seed": None,
    "dedup": True,
    "format": None,
    "errors": "replace",
    "malformed": "drop",
    "device": None,
    "dtype": "float32",
    "revision": None,
    "trust_remote_code": False,
    "attention": None,
    "torch_compile": False,
    "backend": "auto",
    "token_budget": None,
    "packed": False,
    "log_json": None,
    "threads": None,
    "shard_size": None,
    "workers": None,
    "ray": None,
    "distributed": False,
    "shard": None,
    "checkpoint": None,
    "checkpoint_every": None,
    "resume": False,
}

LOAD_OPTIONS = ("device", "dtype", "revision", "trust_remote_code", "attention", "torch_compile")

RUN_OPTIONS = ("token_budget", "packed", "backend", "threads", "shard", "checkpoint", "checkpoint_every", "resume")


def refuse_run_options(options: MeasureOptions) -> None:
    """Refuses what would be ignored where nothing is run.

    Raises:
        ValueError: an option is not at its default.
    """
    asked = [name for name, value in options.items() if name in DEFAULTS and value != DEFAULTS[name]]
    if asked:
        raise ValueError(f"{', '.join(asked)}: got a value beside a state alone, of which nothing is run")


def with_checkpoint_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one of several runs: a checkpoint is one of its own, FILE.NAME.

    Example:
        >>> with_checkpoint_of("0-of-4", {"checkpoint": "run.ckpt"})
        {'checkpoint': 'run.ckpt.0-of-4'}
    """
    file = options.get("checkpoint")
    return {**options, **({} if file is None else {"checkpoint": f"{os.fspath(file)}.{name}"})}


def options_by_model(options: SharedOptions, models: int) -> list[Any]:
    """The options of the run of each of several models over one corpus that is open already.

    Returns:
        For each model the options but those of the corpus; a checkpoint is one of each, FILE.model-0 and so on.
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
    corpus: str | os.PathLike[str] | Corpus | Iterable[str], options: MeasureOptions, *, again: bool = False
) -> Corpus:
    """The corpus that a file or sentences are, read by the options' policies.

    Args:
        corpus: a file or what else one path of a `Corpus` can be, a `Corpus`, or sentences.
        options: those of `CORPUS_OPTIONS` are used.
        again: it will be read more than once, so sentences that can be read only once are kept.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError: the file cannot be read, or not more than once.
        ValueError: a `Corpus` beside options of one, or fields or a format of sentences.
    """
    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in CORPUS_OPTIONS}
    if isinstance(corpus, Corpus):
        if any(chosen[name] != DEFAULTS[name] for name in CORPUS_OPTIONS):
            raise ValueError(f"corpus: got a Corpus and options of one; give {', '.join(CORPUS_OPTIONS)} to it")
        return _readable(corpus, again)
    if isinstance(corpus, (str, os.PathLike)):
        return _readable(open_files([corpus], options), again)
    _, text_format, field = (chosen.pop(name) for name in ("malformed", "format", "field"))
    if field:
        raise ValueError(f"field: got {', '.join(field)}; sentences given in Python have no fields")
    if text_format is not None:
        raise ValueError(f"format: got {text_format!r}; sentences given in Python have no format")
    return Corpus.from_sentences(list(corpus) if again else corpus, **chosen)


def open_files(paths: Sequence[str | os.PathLike[str]], options: MeasureOptions) -> Corpus:
    """One corpus of several files in this order, or what else a path of a `Corpus` can be.

    Args:
        paths: they.
        options: those of `CORPUS_OPTIONS` are used.

    Raises:
        FileNotFoundError, IsADirectoryError, CorpusError, ValueError: as `Corpus`.
    """
    chosen: dict[str, Any] = {name: options.get(name, DEFAULTS[name]) for name in CORPUS_OPTIONS}
    return Corpus(paths, fields=chosen.pop("field"), **chosen)


def _readable(corpus: Corpus, again: bool) -> Corpus:
    if again and corpus.read_once:
        raise CorpusError("corpus: got standard input, which can be read once, and this reads it again; give a file")
    return corpus
