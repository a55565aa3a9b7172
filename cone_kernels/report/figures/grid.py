"""Cells for small multiples."""

from __future__ import annotations

from cone_kernels.report.figures.canvas import Canvas


def grid(canvas: Canvas, cells: int) -> list[Canvas]:
    """Cells for small multiples, row by row: two or three in a row on a page, two on a phone."""
    columns, height = _grid(cells, canvas.width)
    gap = 22
    width = (canvas.width - gap * (columns - 1)) / columns
    return [canvas.region(at % columns * (width + gap), at // columns * height, width, height) for at in range(cells)]


def grid_height(cells: int, width: float) -> float:
    """What `grid` takes."""
    columns, height = _grid(cells, width)
    return -(-cells // columns) * height


def _grid(cells: int, width: float) -> tuple[int, float]:
    """Columns, and the height of a cell."""
    if width < 500:
        return 2, 150
    return (2, 190) if cells in (2, 4) else (3, 170)
