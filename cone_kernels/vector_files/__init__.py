"""Reads vectors that somebody has already: files of arrays, tables, indexes, and what is given in Python.

`Vectors` gives them out in blocks of rows; `cone_kernels.names.VECTOR_FORMATS` lists the formats.
"""

from cone_kernels.vector_files.fingerprint import fingerprint_of
from cone_kernels.vector_files.reading import VectorFileError
from cone_kernels.vector_files.vectors import BLOCK_ROWS, Vectors

__all__ = ["BLOCK_ROWS", "VectorFileError", "Vectors", "fingerprint_of"]
