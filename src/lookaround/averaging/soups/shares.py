"""How much of each ingredient is in a soup."""

import math
from collections.abc import Sequence


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of ``count`` ingredients that add up to one.

    Raises:
        ValueError: Their number is wrong, one is negative or not finite, or all are 0.

    >>> from lookaround.averaging.soups.shares import shares
    >>> shares([1, 3], 2), shares(None, 4), shares([1e308, 1e308], 2)
    ([0.25, 0.75], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5])
    """
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise ValueError(f"weights must be one for each of the {count} ingredients, got {len(given)}")
    if not all(0 <= w < math.inf for w in given) or not any(given):
        raise ValueError(f"weights must not be negative and not all 0, got {given}")
    # Scaled by the largest first: the sum of large ones would be infinite.
    scaled = [w / max(given) for w in given]
    return [w / math.fsum(scaled) for w in scaled]


def pulls(weights: Sequence[float]) -> list[float]:
    """The weight w_j / (w_1 + … + w_j) with which each ingredient pulls the running mean of those before it.

    >>> from lookaround.averaging.soups.shares import pulls
    >>> pulls([0.25, 0.25, 0.5])
    [1.0, 0.5, 0.5]
    """
    total, result = 0.0, []
    for weight in weights:
        total += weight
        result.append(weight / total if weight else 0.0)
    return result


def check_best(best: int, count: int) -> int:
    """``best`` if it is a possible number of ingredients.

    Raises:
        ValueError: It is not.
    """
    if not 1 <= best <= count:
        raise ValueError(f"best must be from 1 to the {count} ingredients, got {best}")
    return best


def ranking(scores: Sequence[float] | None, count: int) -> list[int]:
    """The ingredients' indices from the highest score to the lowest, equal ones in their order.

    Raises:
        ValueError: There is not one score for each ingredient, or one is NaN.

    >>> from lookaround.averaging.soups.shares import ranking
    >>> ranking([0.5, 0.9, 0.9], 3)
    [1, 2, 0]
    """
    if scores is None or len(scores) != count:
        raise ValueError(
            f"scores must be one for each of the {count} ingredients, got {None if scores is None else len(scores)}"
        )
    if any(s != s for s in scores):
        raise ValueError(f"a score is NaN and cannot be ranked: {list(scores)}")
    return sorted(range(count), key=lambda i: -scores[i])
