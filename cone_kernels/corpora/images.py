"""Files of images: each is one "sentence" of a corpus, the path of the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cone_kernels.corpora.reading import CorpusError, Reading
from cone_kernels.corpora.sources import IMAGE, Reader, Source

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")


def image_path(source: Source, reading: Reading) -> Iterator[tuple[int, str]]:
    """The one candidate of an image: its path."""
    yield 1, source.name


def _check_image(source: Source, reading: Reading) -> None:
    """Raises CorpusError where a file does not begin as an image does."""
    with Path(source.name).open("rb") as file:
        if not file.read(4).startswith(_MAGIC):
            raise CorpusError(f"corpus: {source.name} does not begin as an image does; it must be one, or be left out")


READERS: dict[str, Reader] = {IMAGE: Reader(image_path, _check_image, has_fields=False)}
