"""Where a checkout keeps what tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Real sentences lie beside a checkout, not in it; a test that needs them takes the fixture `snli`.
SNLI = ROOT.parent / "shared" / "data" / "snli_dev.jsonl"
