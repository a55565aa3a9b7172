"""What n rows say of the geometry of more of them, in plain sentences: nothing that grows with n goes without its n."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cone_kernels.names import GEOMETRY, listed_words

if TYPE_CHECKING:
    from cone_kernels.metrics import Geometry

_RANKS = ("effective_rank", "rank_me")


def geometry_in_words(geometry: Geometry, rows: str, which: str) -> Iterator[str]:
    """The participation ratio of the rows, corrected for n where that is known, and what the ranks lack.

    Args:
        geometry: of the rows.
        rows: what they are called, "sentences".
        which: the rows with their number, "the 300 sentences of layer 6".
    """
    found = geometry.population
    beyond = f"more {rows} would give more, how much these do not tell"
    if math.isfinite(found.participation_ratio):
        beyond = (
            f"corrected for n it is {found.participation_ratio:.1f} ± {found.participation_ratio_stderr:.1f}, if the "
            f"{rows} are independent"
        )
    yield (
        f"Around their mean {which} spread as if evenly over {geometry.participation_ratio:.1f} directions "
        f"(participation ratio; {beyond}); the first principal axis holds {geometry.explained_variance_ratio:.1%} of "
        "the variance."
    )
    yield from _ranks(geometry, rows)


def _ranks(geometry: Geometry, rows: str) -> Iterator[str]:
    found, phrases, needed = geometry.population, [], []
    for rank in _RANKS:
        claim, name = found.lack(rank), f"{GEOMETRY[rank].label} ({geometry.values[rank]:.1f})"
        if not math.isfinite(claim.estimate):
            continue
        needed += [found.needed(rank) or found.count]
        lacks = f"{1 - math.exp(-claim.estimate):.0%}"
        unsaid = f"{lacks} or somewhat more" if math.isfinite(claim.bound) else "nobody knows how much"
        said = {"greater": f"at least {lacks}", "equal": "less than 5%"}.get(claim.verdict, unsaid)
        phrases.append(f"{name} lacks {said}")
    if phrases:
        most = max(needed)
        more = f", of {most:,} {rows} or more" if most > found.count else ""
        begin = f"Of what more {rows} would give, their {listed_words(phrases)}"
        yield f"{begin}: both grow with n, and are comparable at equal n{more}."
