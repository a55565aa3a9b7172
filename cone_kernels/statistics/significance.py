"""Whether a difference is more than chance: the t distribution, and many tests at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cone_kernels.statistics.claims import ALPHA, Claim


def student_p_value(t: float, degrees: int) -> float:
    """P(|T| ≥ |t|) of Student's t distribution, to a relative error of about 1e-10.

    Args:
        t: the statistic; of an infinite one the answer is 0.
        degrees: ν, the degrees of freedom.

    Raises:
        ValueError: `degrees` is below 1, or `t` is NaN.

    Examples:
        >>> round(student_p_value(2.0, 63), 4)
        0.0498
    """
    from scipy.special import stdtr

    if degrees < 1:
        raise ValueError(f"degrees: got {degrees}; it must be 1 or more")
    if math.isnan(t):
        raise ValueError("t: got nan; it must be a number or infinite")
    return 2 * float(stdtr(degrees, -abs(t)))


def student_bound(stderr: float, degrees: int, tests: int = 1) -> float:
    """How far an estimate may lie from what it estimates, for several that are judged together (Šidák 1967).

    Args:
        stderr: its standard error.
        degrees: degrees of freedom of that; below 1 the answer is NaN.
        tests: how many there are.

    Examples:
        >>> round(student_bound(1.0, 63), 3)
        1.998
    """
    from scipy.special import stdtrit

    return stderr * float(stdtrit(degrees, _upper_level(tests))) if degrees >= 1 else math.nan


def _upper_level(tests: int) -> float:
    together: float = (1 - ALPHA) ** (1 / tests)
    return 1 - (1 - together) / 2


def correlation_claims(correlations: Mapping[str, float], n: int, margin: float) -> dict[str, Claim]:
    """Whether two variables go together, for several pairs that are judged together.

    Without a relation r·√((n−2)/(1−r²)) has Student's t distribution with n − 2 degrees of freedom: of 5 rows one in
    twenty has |r| above 0.88.

    Args:
        correlations: Pearson's r by name; a NaN is no test.
        n: the rows that each is of.
        margin: |r| below which there is nothing to say.

    Examples:
        >>> correlation_claims({"length": -0.99}, n=3, margin=0.3)["length"].verdict
        'undecided'
    """
    tests = sum(not math.isnan(r) for r in correlations.values())
    bound = math.nan
    if tests and n > 2:
        t = student_bound(1.0, n - 2, tests)
        bound = t / math.sqrt(n - 2 + t**2)
    return {name: Claim(r, null=0.0, bound=bound, margin=margin) for name, r in correlations.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for their number (Holm 1979): one at or below α is significant at the family-wise rate α.

    Args:
        p_values: of one family of tests; a NaN is no test, and stays NaN.

    Raises:
        ValueError: a p value is below 0 or above 1.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    outside = [p for p in p_values if p < 0 or p > 1]
    if outside:
        raise ValueError(f"p_values: got {outside}; each must be between 0 and 1")
    order = sorted((at for at, p in enumerate(p_values) if not math.isnan(p)), key=p_values.__getitem__)
    adjusted, least = [math.nan] * len(p_values), 0.0
    for done, at in enumerate(order):
        least = adjusted[at] = max(least, min(1.0, (len(order) - done) * p_values[at]))
    return adjusted
