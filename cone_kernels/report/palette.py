"""The colours of figures and page, light and dark, chosen so that colour-blind eyes tell them apart.

Figures are drawn in the light ones; on the page each becomes the CSS variable of its name.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#fffffe",
    "ink": "#1c2128",
    "muted": "#59636e",
    "rule": "#d5d9df",
    "ghost": "#868e99",
    "link": "#0a57a4",
    "blue": "#0067ab",
    "orange": "#b84a08",
    "green": "#00755a",
    "purple": "#87489b",
}
DARK = {
    "paper": "#14171b",
    "ink": "#e6e9ed",
    "muted": "#a2abb6",
    "rule": "#363d46",
    "ghost": "#66707c",
    "link": "#7cb8f2",
    "blue": "#62b2f0",
    "orange": "#f2985f",
    "green": "#43c79f",
    "purple": "#cf9fe0",
}

PAPER, INK, MUTED, RULE, GHOST = (LIGHT[name] for name in ("paper", "ink", "muted", "rule", "ghost"))
BLUE, ORANGE, GREEN, PURPLE = (LIGHT[name] for name in ("blue", "orange", "green", "purple"))
# What each level is drawn in, wherever it appears.
SENTENCE, TOKEN, PREDICTED, PUBLISHED = BLUE, ORANGE, GREEN, PURPLE

VARIABLES = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


def declarations(colours: dict[str, str]) -> str:
    """The colours as CSS custom properties."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
