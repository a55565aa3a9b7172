"""The script of a page: tables that sort, models that can be hidden, all that is folded opened at once.

The page says the same without it. It reads and writes nothing but the page, and the page's policy names it by its hash,
so that no other script runs.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
"use strict";
const button = (words, act) => {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = words;
  made.addEventListener("click", () => act(made));
  return made;
};
const value = cell => {
  const number = cell.querySelector("data");
  return number ? Number(number.value) : cell.querySelector(".null") ? null : cell.textContent.trim();
};
const order = (a, b) => a === null || b === null ? (a === null) - (b === null)
  : typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll(".cone table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  heads.forEach((head, at) => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [value(row.cells[at]), row]);
      rows.sort(([a], [b]) => a === null || b === null || up ? order(a, b) : order(b, a));
      body.append(...rows.map(([, row]) => row));
    };
    const made = button(head.textContent, sort);
    if (head.textContent) head.replaceChildren(made);
  });
}
for (const figure of document.querySelectorAll(".cone figure")) {
  const drawn = [...figure.querySelectorAll("[data-series]")];
  const names = [...new Set(drawn.map(part => part.dataset.series))];
  if (names.length < 2) continue;
  const keys = document.createElement("p");
  keys.className = "series";
  keys.append(...names.map(name => {
    const key = button(name, () => {
      const hidden = key.getAttribute("aria-pressed") === "true";
      key.setAttribute("aria-pressed", String(!hidden));
      for (const part of drawn) if (part.dataset.series === name) part.classList.toggle("off", hidden);
    });
    key.setAttribute("aria-pressed", "true");
    return key;
  }));
  figure.querySelector(".figure-title").append(keys);
}
const contents = document.querySelector(".cone-page nav ul");
if (contents) {
  const item = document.createElement("li");
  item.append(button("Unfold all", made => {
    const open = made.textContent === "Unfold all";
    for (const part of document.querySelectorAll(".cone details")) part.open = open;
    made.textContent = open ? "Fold all" : "Unfold all";
  }));
  contents.append(item);
}
"""

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'"
)
"""Whatever a corpus or a model's name may hold, no script but ours runs, and nothing is fetched."""
