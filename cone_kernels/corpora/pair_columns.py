"""Which columns of a file of labelled pairs are read: found from their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cone_kernels.corpora.reading import CorpusError

ENTAILMENT = ("entailment", "neutral", "contradiction", "not_entailment")
TRUTH = {"true": True, "false": False, "yes": True, "no": False}
NO_LABEL = ("", "-")
"""What stands where the annotators did not agree, or no label was given."""

_PREMISE = ("premise", "hypothesis")
_PAIRS = (
    _PREMISE,
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("question1", "question2"),
)
_QUERIES = ("query", "question", "anchor")
_RELEVANT = ("positive", "relevant", "document", "answer", "passage")
NEGATIVES = ("negative", "hard_negative")
_KINDS = ("gold_label", "label", "entailment_label", "is_duplicate")
_SCORES = ("score", "similarity_score", "similarity", "relatedness_score")


@dataclass(frozen=True)
class PairColumns:
    """The columns that are read, by their names in the file.

    Attributes:
        first, second: of the texts; of a query, and of a text that is relevant to it.
        label: of the label or score; None where each record is a query and a text.
        negatives: of texts that are not relevant to the query.
    """

    first: str
    second: str
    label: str | None = None
    negatives: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.first, self.second, *self.negatives, *(() if self.label is None else (self.label,)))

    @property
    def of_entailment(self) -> bool:
        """Whether numbers as labels may stand for kinds: 0 is entailment in one data set, contradiction in another."""
        return (self.first.lower(), self.second.lower()) == _PREMISE


def found_columns(names: Sequence[str], kind: str | None, file: str) -> PairColumns:
    """The columns to read.

    Args:
        names: of all columns there are.
        kind: what was asked for: "auc", "spearman" or "retrieval"; None is to be found.
        file: as messages name it.

    Raises:
        CorpusError: they are not understood, or not unambiguous.

    Examples:
        >>> found_columns(["premise", "hypothesis", "label"], None, "snli_dev.jsonl").label
        'label'
    """
    by_name = {name.lower(): name for name in names}
    what = f"pairs: {file} has the columns {listed(names)}"
    two = next((pair for pair in _PAIRS if set(pair) <= set(by_name)), None)
    queries, relevant = ([name for name in known if name in by_name] for known in (_QUERIES, _RELEVANT))
    for several in () if two else (queries, relevant):
        if len(several) > 1:
            raise CorpusError(f"{what}; {listed(several)} may each be the text that is meant: leave one of them")
    if two is None and not (queries and relevant):
        pairs = "; ".join(" and ".join(pair) for pair in _PAIRS)
        raise CorpusError(
            f"{what}; it must have two of texts: {pairs}; or one of {', '.join(_QUERIES)} with one of "
            f"{', '.join(_RELEVANT)}: rename them so"
        )
    first, second = two or (queries[0], relevant[0])
    label = _label(by_name, kind, what)
    if label is None and two is not None and kind != "retrieval":
        known = ", ".join((*_KINDS, *_SCORES))
        raise CorpusError(
            f"{what}; {first} and {second} need a label, one of {known}; if the second text is the answer to the "
            "first, say measure='mrr' (--measure mrr)"
        )
    if label is None and kind not in (None, "retrieval"):
        raise CorpusError(f"{what}; measure {kind!r} needs a label; a query and its relevant text take 'mrr'")
    if label is not None and kind == "retrieval":
        raise CorpusError(
            f"{what}; for 'mrr' every record must be a query and a text that is relevant to it: leave out the other "
            f"records, and the column {by_name[label]!r}"
        )
    negatives = tuple(by_name[name] for name in NEGATIVES if label is None and name in by_name)
    return PairColumns(by_name[first], by_name[second], None if label is None else by_name[label], negatives)


def _label(by_name: dict[str, str], kind: str | None, what: str) -> str | None:
    wanted = {"auc": _KINDS, "spearman": _SCORES}.get(kind or "", ())
    found = [name for name in (*_KINDS, *_SCORES) if name in by_name]
    if len(found) > 1:
        found = [name for name in found if name in wanted] or found
    if len(found) > 1:
        raise CorpusError(
            f"{what}; {listed(found)} may each be the label: leave one of them, or say measure='auc' for kinds or "
            "'spearman' for scores (--measure)"
        )
    return found[0] if found else None


def listed(names: Iterable[object]) -> str:
    """Names in quotes, with commas."""
    return ", ".join(repr(name) for name in names) or "none"
