"""The style sheet of pages and notebook fragments; every rule is scoped to `.cone`."""

from __future__ import annotations

from cone_kernels.report.palette import DARK, LIGHT, declarations

_SHEET = """
.cone { LIGHT; color-scheme: light; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif; }
@media screen and (prefers-color-scheme: dark) { .cone { DARK; color-scheme: dark; } }
[data-jp-theme-light="true"] .cone { LIGHT; color-scheme: light; }
[data-jp-theme-light="false"] .cone, .vscode-dark .cone { DARK; color-scheme: dark; }
.cone * { box-sizing: border-box; }
.cone h1, .cone h2, .cone h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
.cone h1 { font-size: 2rem; margin: 0 0 .5rem; letter-spacing: -.015em; }
.cone h1 bdi { display: inline-block; max-width: 100%; }
.cone h2 { font-size: 1.45rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
.cone h3 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
.cone p { margin: 0 0 .75rem; max-width: 44rem; overflow-wrap: break-word; }
.cone a { color: var(--link); text-underline-offset: .15em; }
.cone a:focus-visible, .cone summary:focus-visible, .cone .scroll:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.cone data, .cone table { font-variant-numeric: tabular-nums; }
.cone .minor { color: var(--muted); }
.cone .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .875em;
  white-space: pre-wrap; }
.cone .findings { margin: 0 0 1rem; padding: 0 0 0 1.1em; max-width: 44rem; }
.cone .findings li { margin: 0 0 .35rem; }
.cone figure { margin: 1.25rem 0; }
.cone .figure-title { font-weight: 600; margin: 0 0 .5rem; }
.cone figcaption { color: var(--muted); font-size: .875rem; line-height: 1.5; margin-top: .5rem; max-width: 44rem; }
.cone .drawing, .cone .scroll { overflow-x: auto; overflow-y: hidden; max-width: 100%; }
.cone .narrow { display: none; }
.cone svg { display: block; width: 100%; min-width: var(--least); max-width: var(--width); height: auto; }
.cone svg * { stroke-linejoin: round; }
.cone svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
.cone svg .hover { fill: transparent; }
.cone svg .hover:hover { stroke: var(--muted); stroke-width: 1; }
.cone svg .off { display: none; }
.cone button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
.cone button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.cone [aria-sort] button::after { content: " ▴"; }
.cone [aria-sort="descending"] button::after { content: " ▾"; }
.cone .series { display: flex; flex-wrap: wrap; gap: .25rem .5rem; margin: .35rem 0 0; max-width: none; }
.cone .series button { font-size: .8125rem; font-weight: 400; padding: 0 .6rem; border: 1px solid var(--ghost);
  border-radius: 1rem; }
.cone .series button[aria-pressed="false"] { color: var(--muted); border-style: dashed;
  text-decoration: line-through; }
.cone svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 2.5px; stroke-linejoin: round; }
.cone table { border-collapse: collapse; font-size: .8125rem; line-height: 1.4; }
.cone caption { text-align: left; padding: 0 0 .5rem; }
.cone caption span { position: sticky; left: 0; display: inline-block; font-weight: 600; white-space: nowrap; }
.cone th, .cone td { padding: .3rem .55rem; vertical-align: top; font-weight: inherit; border: 0; background: none; }
.cone thead th { color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--ghost); }
.cone tbody tr { border-bottom: 1px solid var(--rule); background: none; }
.cone .number, .cone tbody td { text-align: right; white-space: nowrap; }
.cone thead .number { white-space: normal; min-width: 5.5em; }
.cone .text, .cone tbody .text { text-align: left; white-space: normal; }
.cone .long, .cone tbody .long { text-align: left; min-width: 15rem; overflow-wrap: anywhere; white-space: pre-line; }
.cone th:first-child, .cone td:first-child { padding-left: 0; min-width: 0; }
.cone .scroll { margin-top: 1rem; }
.cone .note, .cone .download { font-size: .875rem; color: var(--muted); margin: .5rem 0 0; }
.cone details { margin: .5rem 0; }
.cone details[open] { margin-bottom: 1.25rem; }
.cone .model > summary { color: var(--ink); font-weight: 600; }
.cone .model > :not(summary) { margin-left: 1rem; }
.cone details .scroll { margin-top: .75rem; }
.cone details caption { display: none; }
.cone summary { cursor: pointer; color: var(--link); font-size: .9375rem; }
.cone dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.25rem; margin: 1.25rem 0 0; }
.cone dt { color: var(--muted); }
.cone dd { margin: 0; overflow-wrap: anywhere; }
.cone-fragment svg { min-width: min(var(--width), 560px); }
.cone-fragment { padding: 1rem; border-radius: 6px; font-size: 14px; }
@media print {
  .cone { LIGHT; color-scheme: light; font-size: 1rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .cone .download { display: none; }
  .cone a { color: inherit; text-decoration: none; }
  .cone .scroll, .cone .drawing { overflow: visible; }
  .cone figure, .cone tr { break-inside: avoid; }
  .cone h1, .cone h2, .cone h3, .cone .question, .cone .figure-title, .cone caption, .cone thead {
    break-after: avoid; }
  .cone table { font-size: .75rem; }
  .cone th, .cone td { padding: .15rem .45rem; }
  .cone details:not([open]), .cone .series { display: none; }
  .cone .model > :not(summary) { margin-left: 0; }
}
"""

_PAGE = """
html { background: LIGHT_PAPER; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
@media screen and (prefers-color-scheme: dark) { html { background: DARK_PAPER; } }
body { margin: 0; }
.cone-page { container-type: inline-size; padding: 0 1.25rem 4rem; max-width: 54.5rem; margin: 0 auto; }
.cone-page nav { position: sticky; top: 0; z-index: 2; background: var(--paper); overflow-x: auto;
  border-bottom: 1px solid var(--rule); font-size: .9375rem; }
.cone-page nav ul { display: flex; gap: .25rem 1.25rem; list-style: none; padding: .5rem 0; margin: 0;
  white-space: nowrap; }
.cone-page nav button { color: var(--muted); }
.cone-page header { padding-top: 1.25rem; }
.cone-page header p { margin: 0 0 .25rem; max-width: none; }
.cone-page .facts { color: var(--muted); font-size: .875rem; list-style: none; display: flex; flex-wrap: wrap;
  gap: 0 1.25rem; padding: 0; margin: 0; }
.cone-page section { margin-top: 2rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  scroll-margin-top: 2.75rem; }
.cone-page #overview { margin-top: 0; padding-top: 0; border-top: 0; }
.cone-page .cards { font-size: .84375rem; }
.cone-page .cards :is(th, td) { padding-left: .4rem; padding-right: .4rem; }
.cone-page .cards tbody th { font-weight: 600; min-width: 7rem; padding-left: 0; }
.cone-page .cards thead th:first-child { padding-left: 0; }
.cone-page .question { color: var(--muted); margin-bottom: .75rem; }
.cone-page .beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr));
  gap: 0 1.5rem; }
.cone-page .beside .narrow { display: block; }
.cone-page .beside .wide { display: none; }
.cone-page .methods dt { color: var(--ink); font-weight: 600; }
.cone-page .methods { display: block; }
.cone-page .methods dd { margin: 0 0 .75rem; max-width: 44rem; }
@container (max-width: 620px) {
  .cone .narrow { display: block; }
  .cone .wide { display: none; }
  .cone caption span { max-width: 100cqw; white-space: normal; }
  .cone th:first-child { position: sticky; left: 0; background: var(--paper); }
  .cone .cards thead { display: none; }
  .cone .cards, .cone .cards tbody, .cone .cards tr, .cone .cards tbody th { display: block; }
  .cone .cards caption, .cone .cards td { display: block; }
  .cone .cards td { padding: .1rem 0; }
  .cone .cards td:empty { display: none; }
  .cone .cards td::before { content: attr(data-heading); float: left; color: var(--muted); }
}
@media (max-width: 620px) {
  .cone-page { padding: 0 1rem 3rem; }
  .cone dl { grid-template-columns: minmax(0, 1fr); }
  .cone dl { gap: 0; }
  .cone dd { margin-bottom: .5rem; }
  .cone h1 { font-size: 1.6rem; }
}
@page { size: A4; margin: 16mm 15mm; }
@media print {
  html { background: none; font-size: 13px; }
  .cone-page { padding: 0; max-width: none; }
  .cone-page nav { display: none; }
  .cone-page section { margin-top: 1.5rem; }
}
"""


def style_sheet(*, page: bool) -> str:
    """The rules of a fragment, or of a whole page."""
    sheet = _SHEET + (_PAGE if page else "")
    sheet = sheet.replace("LIGHT_PAPER", LIGHT["paper"]).replace("DARK_PAPER", DARK["paper"])
    sheet = sheet.replace("LIGHT;", declarations(LIGHT)).replace("DARK;", declarations(DARK))
    return sheet.strip() + "\n"
