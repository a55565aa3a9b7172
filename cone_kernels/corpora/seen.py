"""Which sentences came before: an exact answer, in memory that does not grow with the corpus."""

from __future__ import annotations

import mmap
import os
import sqlite3
import struct
import tempfile
from contextlib import closing

DIGEST_BYTES = 16
# Enough for 1.5 million sentences; of more, 26 bytes each go to disk.
DEDUP_MEMORY = 32 << 20
MIN_DEDUP_MEMORY = 1 << 10

_EMPTY = bytes(DIGEST_BYTES)
_FILLED = 0.75
_BLOCK = 1 << 20
_halves = struct.Struct(">qq").unpack


class SeenDigests:
    """A set of digests of 16 bytes: a table in memory with open addressing, and once that is full a file instead.

    The whole digest is compared, in memory and on disk. The table is as large from the start as it may become: it is
    zero pages, which cost nothing before they are written to. A digest's leading bits are its slot, so that the table
    goes to the file nearly in order, and its pages are given back as it does. The file is a SQLite table keyed by the
    digest's first half, in the temporary folder (`TMPDIR`), without a name, so that nothing stays behind whatever
    happens.

    Args:
        memory: bytes for the table, or after it for the pages of the file that are kept in memory.

    Raises:
        ValueError: `memory` is below 1024.

    Examples:
        >>> seen = SeenDigests(1 << 20)
        >>> digest = hashlib.blake2b(b"a sentence", digest_size=16).digest()
        >>> seen.add(digest), seen.add(digest)
        (True, False)
    """

    def __init__(self, memory: int = DEDUP_MEMORY) -> None:
        if memory < MIN_DEDUP_MEMORY:
            raise ValueError(f"dedup_memory: got {memory}; it must be at least {MIN_DEDUP_MEMORY} bytes")
        slots = 1 << ((memory // DIGEST_BYTES).bit_length() - 1)
        self._memory = memory
        self._table = mmap.mmap(-1, slots * DIGEST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._free = int(slots * _FILLED)
        self._shift = 64 - (slots.bit_length() - 1)
        self._file: sqlite3.Connection | None = None
        self._clashes: set[bytes] = set()

    def add(self, digest: bytes) -> bool:
        """Adds a digest (16 bytes, not all zero) and tells whether it is new.

        Raises:
            OSError: the file cannot be written, such as when the disk is full.
        """
        if self._file is not None:
            return self._add_to_file(self._file, digest)
        table = self._table
        last = len(table) - DIGEST_BYTES
        at = (int.from_bytes(digest[:8], "big") >> self._shift) * DIGEST_BYTES
        while (found := table[at : at + DIGEST_BYTES]) != _EMPTY:
            if found == digest:
                return False
            at = at + DIGEST_BYTES & last
        table[at : at + DIGEST_BYTES] = digest
        self._free -= 1
        if not self._free:
            self._spill()
        return True

    @property
    def on_disk(self) -> bool:
        """Whether the digests are in the file."""
        return self._file is not None

    def close(self) -> None:
        """Frees the memory and the disk."""
        self._table.close()
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        try:
            self._file = _nameless_database(self._memory)
        except sqlite3.Error as error:
            raise _cannot_write(error) from error
        for start in range(0, len(self._table), _BLOCK):
            block = self._table[start : start + _BLOCK]
            for at in range(0, len(block), DIGEST_BYTES):
                if (digest := block[at : at + DIGEST_BYTES]) != _EMPTY:
                    self._add_to_file(self._file, digest)
            self._table.madvise(mmap.MADV_DONTNEED, start, len(block))
        self._table.close()

    def _add_to_file(self, file: sqlite3.Connection, digest: bytes) -> bool:
        first, second = _halves(digest)
        try:
            with closing(file.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (first, second))) as inserted:
                if inserted.rowcount:
                    return True
            with closing(file.execute("SELECT second FROM seen WHERE first = ?", (first,))) as selected:
                if selected.fetchone() == (second,):
                    return False
        except sqlite3.Error as error:
            raise _cannot_write(error) from error
        # Two digests with one first half: one in 2^64 pairs, so that these few are kept in memory.
        new = digest not in self._clashes
        self._clashes.add(digest)
        return new


def _nameless_database(memory: int) -> sqlite3.Connection:
    descriptor, name = tempfile.mkstemp(prefix="cone-seen-")
    os.close(descriptor)
    try:
        # A corpus may be read in one thread and closed in another.
        file = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        # No journal and no sync: the file dies with its process. Pages beyond the cache are written out.
        file.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;"
            f"PRAGMA cache_size = -{max(1, memory >> 10)};"
            "CREATE TABLE seen (first INTEGER PRIMARY KEY, second INTEGER); BEGIN"
        )
    finally:
        os.unlink(name)
    return file


def _cannot_write(error: sqlite3.Error) -> OSError:
    return OSError(
        f"corpus: the digests of the sentences seen cannot be kept in {tempfile.gettempdir()}: {error}; "
        "name another folder by TMPDIR, or give dedup=False where the sentences are distinct"
    )
