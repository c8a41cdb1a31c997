"""Model soups in memory: one model whose weights are the mean of several finished ones."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.soups.dtypes import is_averaged
from lookaround.averaging.soups.opening import Ingredient, as_list, open_sources
from lookaround.averaging.soups.recipe import warn_of_strangers
from lookaround.averaging.soups.shares import check_best, pulls, ranking, shares
from lookaround.averaging.soups.sources import Source, common_ties

Weights = dict[str, Tensor]


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
    is one tensor in memory. Integers and modules' extra states are copied from the first ingredient used. Weights that
    are tied in all ingredients are one tensor in the soup too. A soup's running statistics are means of the
    ingredients'; :func:`~lookaround.averaging.update_norm_stats` re-estimates them.

    Args:
        ingredients: Models, state dicts, safetensors or ``torch.save`` files, or folders as Hugging Face's libraries write
            them (one file, or several with an index), in any mixture. Files are known by what is in them.
        weights: Weights of the ingredients, scaled to add up to one; equal ones by default.
        best: Use only this many ingredients, those with the highest ``scores``; of equal ones the earlier.
        scores: The held-out accuracy of each ingredient.

    Returns:
        The soup in the ingredients' dtypes, on the first ingredient's device.

    Raises:
        ValueError: The ingredients differ in names, shapes or dtypes (the message lists how), a file is damaged, numbers
            cannot be averaged (block scales, 4-bit floats), or the other arguments do not fit the ingredients.
        TypeError: An ingredient is none of those above.
        OSError: A file cannot be read.

    Warns:
        UserWarning: The metadata of files say that the models were trained from different initial weights.

    >>> import torch
    >>> from lookaround.averaging import uniform_soup
    >>> a, b, c = ({"w": torch.tensor([x])} for x in (1.0, 2.0, 6.0))
    >>> uniform_soup([a, b, c])["w"], uniform_soup([a, b, c], best=2, scores=[0.8, 0.9, 0.7])["w"]
    (tensor([3.]), tensor([1.5000]))

    References: Wortsman et al. 2022, "Model soups"; the best n: Zhang et al. 2023 (Lookaround), Table 11, "Uniform
    Soups+".
    """
    chosen = as_list(ingredients)
    portions = list(weights) if weights is not None else None
    if best is not None:
        kept = sorted(ranking(scores, len(chosen))[: check_best(best, len(chosen))])
        chosen = [chosen[i] for i in kept]
        portions = [portions[i] for i in kept] if portions is not None else None
    with open_sources(chosen) as sources:
        warn_of_strangers(sources)
        pull = pulls(shares(portions, len(sources)))
        made = {name: _mean(name, sources, pull) for name in dict.fromkeys(common_ties(sources).values())}
        return _under_all_names(made, sources)


def _under_all_names(made: Weights, sources: Sequence[Source]) -> Weights:
    """The soup's tensors under tied names too, and the first ingredient's extra states."""
    named = {name: made[kept] for name, kept in common_ties(sources).items()}
    return named | copy.deepcopy(dict(sources[0].extras))


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
    next one is formed. Low-precision models take a third copy, in their own dtype, while one is evaluated. Equal scores
    are kept, as in the paper. Integers and extra states are those of the best ingredient.

    Each file is read once if ``scores`` are given. If not, it is read twice, for its own score and then, when the order
    is known, for its candidate: to read it once would take all ingredients in memory.

    Args:
        ingredients: As for :func:`uniform_soup`.
        evaluate: The score of a state dict on held-out data, higher is better; never on the test set. It may load the
            tensors into a model but must not change them, and what it keeps stays in memory.
        scores: Each ingredient's own score; ``evaluate`` is called for each if they are not given.

    Raises:
        ValueError: The ingredients differ in names, shapes or dtypes, ``scores`` do not fit them, or a score is NaN.

    >>> import torch
    >>> from lookaround.averaging import greedy_soup
    >>> points = [{"w": torch.tensor([x])} for x in (0.0, 3.0, -4.0)]
    >>> soup = greedy_soup(points, lambda state: -abs(state["w"].item() - 1.0))
    >>> soup.members, soup.weights["w"]
    ((0, 1), tensor([1.5000]))

    References: Wortsman et al. 2022, "Model soups", recipe 1.
    """
    with open_sources(as_list(ingredients)) as sources:
        own = [evaluate(_whole(s)) for s in sources] if scores is None else [float(s) for s in scores]
        first, *rest = ranking(own, len(sources))
        mean = _widened(sources[first])
        score = own[first] if scores is None else evaluate(_narrowed(mean, sources[first]))
        members = [first]
        for index in rest:
            candidate = _joined(mean, sources[index], 1 / (len(members) + 1))
            trial = evaluate(_narrowed(candidate, sources[first]))
            if trial >= score:
                mean, score = candidate, trial
                members.append(index)
            del candidate
        return Soup(_narrowed(mean, sources[first]), tuple(members), score, tuple(own))


def _whole(source: Source) -> Weights:
    return dict(source.tensors()) | copy.deepcopy(dict(source.extras))


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
    narrow = {name: value.to(like.layout[name][0]) for name, value in mean.items()}
    return narrow | copy.deepcopy(dict(like.extras))
