"""Images as the "sentences" of a corpus: the path of a file, or the name of one in memory, made of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cone_kernels.corpora.reading import KNOWN_FIELDS, CorpusError, Reading
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


class NamedImage(str):
    """An image in memory as a sentence: its name is made of its pixels, so that equal images are one.

    Attributes:
        load_image: gives the image of PIL, in RGB.
    """

    load_image: Callable[[], Any]


class ImageRows:
    """The images of a list, or of the rows of a data set, as sentences; each is fetched when it is asked for.

    Args:
        rows: with a length, and found by number: images of PIL, records with one in `field`, or `NamedImage`.
        field: of records; None where the rows are images themselves.

    Examples:
        >>> [name] = ImageRows([Image.new("RGB", (8, 8))])
        >>> name.load_image().size
        (8, 8)
    """

    def __init__(self, rows: Any, field: str | None = None) -> None:
        self._rows, self._field = rows, field

    def __iter__(self) -> Iterator[NamedImage]:
        """The images in order.

        Raises:
            CorpusError: a row has no image, or one that cannot be read.
        """
        for number in range(len(self._rows)):
            row = self._rows[number] if self._field is None else None
            if isinstance(row, NamedImage):
                yield row
                continue
            pixels = self._image(number)
            digest = hashlib.sha256(b"%d %d " % pixels.size + pixels.tobytes()).hexdigest()
            named = NamedImage(f"image {digest}")
            named.load_image = partial(self._image, number)
            yield named

    def _image(self, number: int) -> Any:
        place = f"images[{number}]" + ("" if self._field is None else f"[{self._field!r}]")
        try:
            row = self._rows[number]
            image = row if self._field is None else row.get(self._field)
            found = image.convert("RGB") if _is_image(image) else None
        # A data set decodes an image where its row is asked for, and PIL where its pixels are.
        except (OSError, ValueError) as error:
            raise CorpusError(f"corpus: {place} cannot be read as an image: {error}") from None
        if found is None:
            raise CorpusError(f"corpus: {place} is a {type(image).__name__}; it must be an image of PIL")
        return found


def image_rows(items: Any, field: str | None) -> ImageRows | None:
    """Images given in Python as sentences; None of anything else.

    Records with a field of `KNOWN_FIELDS`, such as captions beside their images, are texts unless `field` names images.

    Args:
        items: whatever was given as a corpus.
        field: of records, the one that holds images; None for the only one that does.

    Raises:
        CorpusError: several fields hold images, and none is named; the first image cannot be read.

    Examples:
        >>> image_rows(load_dataset("beans", split="train"), None) is None
        False
    """
    found_by_number = hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, Mapping)
    if isinstance(items, (str, bytes)) or not found_by_number or not len(items):
        return None
    try:
        first = items[0]
    except (KeyError, TypeError):  # a table whose columns are found by name
        return None
    except (OSError, ValueError) as error:
        raise CorpusError(f"corpus: images[0] cannot be read as an image: {error}") from None
    if not isinstance(first, Mapping):
        return ImageRows(items) if _is_image(first) or isinstance(first, NamedImage) else None
    names = [str(name) for name, value in first.items() if _is_image(value)]
    if field is not None:
        return ImageRows(items, field) if field in names else None
    if not names or any(set(known) <= set(first) for known in KNOWN_FIELDS):
        return None
    if len(names) > 1:
        raise CorpusError(
            f"corpus: the first record has images in {', '.join(map(repr, names))}; name one as the field"
        )
    return ImageRows(items, names[0])


def _is_image(value: Any) -> bool:
    """Whether it is an image of PIL, which need not be installed."""
    return all(hasattr(value, name) for name in ("convert", "tobytes", "mode", "size"))


READERS: dict[str, Reader] = {IMAGE: Reader(image_path, _check_image, has_fields=False)}
