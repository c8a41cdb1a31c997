"""Model soups: one model whose weights are the mean of several finished ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.sources import Ingredient, Source, open_sources

Weights = dict[str, Tensor]


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of ``count`` ingredients that add up to one.

    Raises:
        ValueError: Their number is wrong, one is negative or not finite, or all are 0.

    >>> shares([1, 3], 2), shares(None, 4)
    ([0.25, 0.75], [0.25, 0.25, 0.25, 0.25])
    """
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    if len(given) != count:
        raise ValueError(f"weights must be one for each of the {count} ingredients, got {len(given)}")
    if not all(0 <= w < float("inf") for w in given) or sum(given) == 0:
        raise ValueError(f"weights must not be negative and not all 0, got {given}")
    return [w / sum(given) for w in given]


def pulls(weights: Sequence[float]) -> list[float]:
    """The weight w_j / (w_1 + … + w_j) with which each ingredient pulls the running mean of those before it.

    >>> pulls([0.25, 0.25, 0.5])
    [1.0, 0.5, 0.5]
    """
    total, result = 0.0, []
    for weight in weights:
        total += weight
        result.append(weight / total if weight else 0.0)
    return result


def is_averaged(dtype: torch.dtype) -> bool:
    """Whether tensors of this dtype are averaged; others (counters, masks) are copied from the first ingredient."""
    return dtype.is_floating_point or dtype.is_complex


@torch.no_grad()
def uniform_soup(
    ingredients: Iterable[Ingredient],
    *,
    weights: Sequence[float] | None = None,
    best: int | None = None,
    scores: Sequence[float] | None = None,
) -> Weights:
    """The mean of several models' weights and floating-point buffers, as a state dict.

    The mean is formed in at least float32, tensor by tensor: files are never read whole, and beside the result there
    is one tensor in memory. Only ``torch.save`` files of before PyTorch 1.6 must be read whole: where there is one, the
    ingredients are added one after another, memory holds the whole mean in at least float32 and one such file, and each
    of these is read twice, to check it and to add it. Integers are copied from the first ingredient used. A soup's
    running statistics are means of the ingredients'; :func:`~lookaround.averaging.update_norm_stats` re-estimates them.

    Args:
        ingredients: Models, state dicts, safetensors files (``*.safetensors``) or ``torch.save`` files, in any mixture.
        weights: Weights of the ingredients, scaled to add up to one; equal ones by default.
        best: Use only this many ingredients, those with the highest ``scores``; of equal ones the earlier.
        scores: The held-out accuracy of each ingredient.

    Returns:
        The soup in the ingredients' dtypes, on the first ingredient's device.

    Raises:
        ValueError: The ingredients differ in names, shapes or dtypes (the message lists how), or the other arguments do
            not fit them.
        TypeError: An ingredient is none of those above.

    >>> a, b, c = ({"w": torch.tensor([x])} for x in (1.0, 2.0, 6.0))
    >>> uniform_soup([a, b, c])["w"], uniform_soup([a, b, c], best=2, scores=[0.8, 0.9, 0.7])["w"]
    (tensor([3.]), tensor([1.5000]))

    References: Wortsman et al. 2022, "Model soups"; the best n: Zhang et al. 2023 (Lookaround), Table 11, "Uniform
    Soups+".
    """
    if isinstance(ingredients, str | PathLike):
        raise TypeError(f"a soup takes a list of ingredients, got one path, {str(ingredients)!r}: put it in a list")
    chosen = list(ingredients)
    portions = list(weights) if weights is not None else None
    if best is not None:
        kept = sorted(ranking(scores, len(chosen))[: check_best(best, len(chosen))])
        chosen = [chosen[i] for i in kept]
        portions = [portions[i] for i in kept] if portions is not None else None
    with open_sources(chosen) as sources:
        pull = pulls(shares(portions, len(sources)))
        if all(source.piecewise for source in sources):
            return {name: _mean(name, sources, pull) for name in sources[0].layout}
        mean = whole_mean(sources, pull)
        return {name: mean.pop(name).to(dtype) for name, (dtype, _) in sources[0].layout.items()}


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


def _mean(name: str, sources: Sequence[Source], pull: Sequence[float]) -> Tensor:
    dtype, _ = sources[0].layout[name]
    first = sources[0].tensor(name)
    if not is_averaged(dtype):
        return first.clone()
    mean = tensors.clone([first], wide=True)
    for source, weight in zip(sources[1:], pull[1:], strict=True):
        if weight:
            tensors.lerp_each_([mean], [source.tensor(name)], [weight])
    return mean[0].to(dtype)


def whole_mean(sources: Sequence[Source], pull: Sequence[float]) -> Weights:
    """The mean in at least float32, source after source, so that no more than one has to be in memory."""
    mean = _widened(sources[0])
    for source, weight in zip(sources[1:], pull[1:], strict=True):
        if weight:
            _pull_(mean, source, weight)
    return mean


@dataclass(frozen=True)
class Soup:
    """What :func:`greedy_soup` cooked.

    Attributes:
        weights: The soup's state dict.
        members: The ingredients in it, by index, in the order they were added.
        score: The soup's held-out score.
        scores: Each ingredient's own held-out score.
    """

    weights: Weights
    members: tuple[int, ...]
    score: float
    scores: tuple[float, ...]


@torch.no_grad()
def greedy_soup(
    ingredients: Iterable[Ingredient],
    evaluate: Callable[[Weights], float],
    *,
    scores: Sequence[float] | None = None,
) -> Soup:
    """The greedy soup: ingredients from the best to the worst, each kept if the soup with it is no worse held out.

    Of what is made here, only the soup's running mean and one candidate are in memory, both in at least float32: the
    candidate for ingredient θ is m + (θ - m) / (n + 1), formed while θ is read tensor by tensor, and dropped before the
    next one is formed. Low-precision models take a third copy, in their own dtype, while one is evaluated, and files of
    before PyTorch 1.6 another while one is read (see :func:`uniform_soup`). Ties are kept, as in the paper. Integers
    are those of the best ingredient.

    Each file is read once if ``scores`` are given. If not, it is read twice, for its own score and then, when the order
    is known, for its candidate: to read it once would take all ingredients in memory. Files of before PyTorch 1.6 are
    read once more, to check them.

    Args:
        ingredients: As for :func:`uniform_soup`.
        evaluate: The score of a state dict on held-out data, higher is better; never on the test set. It may load the
            tensors into a model but must not change them, and what it keeps stays in memory.
        scores: Each ingredient's own score; ``evaluate`` is called for each if they are not given.

    Raises:
        ValueError: The ingredients differ in names, shapes or dtypes, ``scores`` do not fit them, or a score is NaN.

    >>> points = [{"w": torch.tensor([x])} for x in (0.0, 3.0, -4.0)]
    >>> soup = greedy_soup(points, lambda state: -abs(state["w"].item() - 1.0))
    >>> soup.members, soup.weights["w"]
    ((0, 1), tensor([1.5000]))

    References: Wortsman et al. 2022, "Model soups", recipe 1.
    """
    with open_sources(list(ingredients)) as sources:
        own = [evaluate(_whole(s)) for s in sources] if scores is None else [float(s) for s in scores]
        first, *rest = ranking(own, len(sources))
        mean = _widened(sources[first])
        score = own[first] if scores is None else evaluate(_narrowed(mean, sources[first]))
        members = [first]
        for index in rest:
            candidate = _joined(mean, sources[index], 1 / (len(members) + 1))
            trial = evaluate(_narrowed(candidate, sources[index]))
            if trial >= score:
                mean, score = candidate, trial
                members.append(index)
            del candidate
        return Soup(_narrowed(mean, sources[first]), tuple(members), score, tuple(own))


def _whole(source: Source) -> Weights:
    return dict(source.tensors())


def _widened(source: Source) -> Weights:
    return {name: tensors.clone([value], wide=True)[0] for name, value in source.tensors()}


def _joined(mean: Mapping[str, Tensor], source: Source, weight: float) -> Weights:
    """m + weight (θ - m) in new memory; integers as they are in m."""
    joined = {name: value.clone() for name, value in mean.items()}
    _pull_(joined, source, weight)
    return joined


def _pull_(mean: Mapping[str, Tensor], source: Source, weight: float) -> None:
    """m ← m + weight (θ - m); integers stay."""
    for name, value in source.tensors():
        if is_averaged(value.dtype):
            tensors.lerp_each_([[mean[name]]], [value], [weight])
        # Or it would be in memory beside the next.
        del value


def _narrowed(mean: Mapping[str, Tensor], like: Source) -> Weights:
    return {name: value.to(like.layout[name][0]) for name, value in mean.items()}
