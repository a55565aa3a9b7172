"""The frame of every page: one HTML document that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from cone_kernels.report.inline import Parts, escape, plain
from cone_kernels.report.script import POLICY, SCRIPT
from cone_kernels.report.shared_styles import share_styles
from cone_kernels.report.style import style_sheet


def document(title: Parts, header: str, main: str, contents: Sequence[tuple[str, str]] = ()) -> str:
    """The page.

    Args:
        title: of the window.
        header: what stands above all, as HTML.
        main: the rest.
        contents: ids of the sections and what they are called, for a bar that stays in sight.
    """
    listed = "".join(f'<li><a href="#{key}">{escape(words)}</a></li>' for key, words in contents)
    bar = f'<nav aria-label="Contents"><ul>{listed}</ul></nav>' if contents else ""
    shown, shared = share_styles(f"{bar}{header}<main>{main}</main>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(plain(title))}</title>"
        f"<style>{style_sheet(page=True)}{shared}</style></head>\n"
        f'<body><div class="cone cone-page">{shown}</div>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
