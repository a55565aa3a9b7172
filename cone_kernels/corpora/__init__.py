"""Reads a corpus: distinct sentences in order of first appearance, with everything left out counted.

`Corpus` says which files; `cone_kernels.names.FORMATS` lists their formats.
"""

from cone_kernels.corpora.corpus import Corpus
from cone_kernels.corpora.reading import (
    DROP_REASONS,
    KNOWN_FIELDS,
    MAX_EXAMPLES,
    REPLACE_REASONS,
    CorpusError,
    Encoding,
    Malformed,
)
from cone_kernels.corpora.summary import CorpusSummary

__all__ = [
    "DROP_REASONS",
    "KNOWN_FIELDS",
    "MAX_EXAMPLES",
    "REPLACE_REASONS",
    "Corpus",
    "CorpusError",
    "CorpusSummary",
    "Encoding",
    "Malformed",
]
