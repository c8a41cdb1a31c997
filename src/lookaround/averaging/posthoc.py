"""Post-hoc averages: from stored power-function averages of two widths, the average of any other one, after the training."""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.files import read_header
from lookaround.averaging.power_rule import exponent
from lookaround.averaging.soups.dtypes import is_averaged
from lookaround.averaging.soups.opening import open_sources
from lookaround.averaging.soups.sources import Source

METADATA_KEY = "lookaround.power"
"""Where a snapshot's file says what it is: a JSON object with gamma and points."""

# Profiles that differ by less than this are one to the solver: rounding would decide between them.
_RESOLUTION = 1e-12
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Profile:
    """A power-function average: its exponent γ and the number of points in it, p(τ) = (γ+1) τ^γ / t^(γ+1) for τ in [0, t]."""

    gamma: float
    points: float


@dataclass(frozen=True)
class Synthesis:
    """What :func:`synthesize` made.

    Attributes:
        weights: The average as a state dict, in the precision of the snapshots, tied weights under all their names.
        coefficients: The coefficient of each snapshot, by its file's name; they add up to one, some are negative.
        error: The distance of the profile from the one asked for, relative to that one's norm (both in L2).
    """

    weights: dict[str, Tensor]
    coefficients: dict[str, float]
    error: float


def posthoc_weights(stored: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The coefficients with which stored power-function averages come closest to a wanted one, and how close that is.

    They minimise the L2 distance of the profiles among all that add up to one, in closed form: the inner product of two
    profiles is (γ_a+1) (γ_b+1) / (γ_a+γ_b+1) · (t_a/t_b)^(γ_b) / t_b for t_a ≤ t_b. Coefficients that do not add up to one
    would scale the weights; the authors' code scales the unconstrained solution instead.

    Args:
        stored: What there is, each of at most ``wanted.points`` points; two values of γ at a few dozen times are plenty.
        wanted: What to come close to.

    Returns:
        One coefficient for each stored average, and the distance relative to the wanted profile's norm.

    Raises:
        ValueError: Nothing is stored, or something of more points than are wanted.

    References: Karras et al. 2024 (arXiv 2312.02696), section 3.2, equations 19 and 151, algorithm 3.

    >>> from lookaround.averaging import Profile, posthoc_weights
    >>> stored = [Profile(gamma, points) for points in (50, 100) for gamma in (6.94, 16.97)]
    >>> weights, error = posthoc_weights(stored, Profile(16.97, 100))
    >>> [round(w, 6) + 0.0 for w in weights], error < 1e-6
    ([0.0, 0.0, 0.0, 1.0], True)
    """
    if not stored or any(not 0 < s.points <= wanted.points for s in stored):
        raise ValueError(
            f"there must be stored averages, of at most the {wanted.points} points wanted; got those of "
            f"{sorted({s.points for s in stored})}"
        )
    gram = _products(stored, stored, wanted.points)
    target = _products(stored, [wanted], wanted.points)[:, 0]
    inverse = torch.linalg.pinv(gram, rtol=_RESOLUTION, hermitian=True)
    ones = inverse.sum(1)
    free = inverse @ target
    weights = free + ones * (1 - free.sum()) / ones.sum()
    own = _products([wanted], [wanted], wanted.points)[0, 0]
    distance = weights @ gram @ weights - 2 * target @ weights + own
    return weights.tolist(), math.sqrt(max(distance / own, 0.0))


def _products(first: Sequence[Profile], second: Sequence[Profile], longest: float) -> Tensor:
    """The inner products of the profiles, in units in which that of γ = 0 over the ``longest`` time has norm 1."""

    def columns(profiles: Sequence[Profile]) -> tuple[Tensor, Tensor]:
        values = torch.tensor([(p.gamma, p.points / longest) for p in profiles], dtype=torch.float64)
        return values[:, 0], values[:, 1]

    (a, s), (b, t) = columns(first), columns(second)
    a, s = a[:, None], s[:, None]
    ratio = torch.where(s <= t, (s / t) ** b, (t / s) ** a)
    return (a + 1) * (b + 1) / (a + b + 1) * ratio / torch.maximum(s, t)


def snapshot_path(folder: str | PathLike[str], profile: Profile) -> Path:
    """The file of a snapshot; it sorts by time.

    >>> from lookaround.averaging import Profile
    >>> from lookaround.averaging.posthoc import snapshot_path
    >>> snapshot_path("ema", Profile(6.94, 1000)).as_posix()
    'ema/power-000000001000-6.94.safetensors'
    """
    return Path(folder) / f"power-{int(profile.points):012d}-{profile.gamma:.9g}.safetensors"


def snapshot_metadata(profile: Profile) -> dict[str, str]:
    """What a snapshot's file says of itself."""
    return {METADATA_KEY: json.dumps({"gamma": profile.gamma, "points": profile.points})}


def snapshots(folder: str | PathLike[str]) -> dict[Path, Profile]:
    """The snapshots in a folder, oldest first.

    Raises:
        ValueError: A file of a snapshot's name is damaged or says nothing of its profile.
        OSError: The folder or a file cannot be read.
    """
    found = {}
    for path in sorted(p for p in Path(folder).iterdir() if p.match("power-*.safetensors")):
        _, metadata = read_header(path)
        try:
            found[path] = Profile(**json.loads(metadata[METADATA_KEY]))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} says nothing of a power-function average: {error!r}") from error
    return found


def synthesize(
    folder: str | PathLike[str], width: float | None = None, *, gamma: float | None = None, points: int | None = None
) -> Synthesis:
    """The power-function average of any width, made afterwards from the snapshots of two (or more) in a folder.

    Train with ``RunningAverage(model, [power(0.05), power(0.10)])`` and call its
    :meth:`~lookaround.averaging.RunningAverage.store` every few percent of the run: any width can then be tried on held-out data
    without training again. From 20 snapshots of each, the profiles of widths 0.03 to 0.2 are made to 3 % and better, from 100
    those of 0.015 to 0.25 to 1 %. Files are read tensor by tensor: beside the result there is one tensor in
    memory. Norm statistics are averaged like weights; :func:`~lookaround.averaging.update_norm_stats` re-estimates them.

    Args:
        folder: Where the snapshots are.
        width: The relative width σ_rel, in (0, 0.2887].
        gamma: The exponent γ ≥ 0 instead.
        points: The time of the average in points; that of the last snapshot by default.

    Returns:
        The average, with what it was made of. Load it with ``model.load_state_dict(result.weights)``, and
        ``strict=False`` for a model with frozen parameters, which are in no snapshot.

    Raises:
        ValueError: There are no snapshots up to ``points``, one is damaged, they are of different models, or not exactly one of
            ``width`` and ``gamma`` is given.
        OSError: The folder or a file cannot be read.

    Warns:
        UserWarning: The profile cannot be made of these snapshots: its error is above 0.1.

    References: Karras et al. 2024 (arXiv 2312.02696), section 3.2 and appendix C.

    >>> import tempfile
    >>> from torch import nn
    >>> from lookaround.averaging import RunningAverage, power, synthesize
    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = RunningAverage(model, [power(0.05), power(0.10)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in range(1, 1001):
    ...         _ = nn.init.constant_(model.weight, float(step))
    ...         average.update()
    ...         if step % 50 == 0:
    ...             files = average.store(folder)
    ...     result = synthesize(folder, 0.2)
    >>> round(result.weights["weight"].item()), result.error < 0.02  # the mean of γ = 1.83 is at (γ+1)/(γ+2) = 0.739
    (740, True)
    """
    if (width is None) == (gamma is None):
        raise ValueError(f"synthesize takes a width or gamma, one of them; got width={width}, gamma={gamma}")
    known = snapshots(folder)
    if not known:
        raise ValueError(f"there are no snapshots in {folder}; store them with RunningAverage.store()")
    time = max(p.points for p in known.values()) if points is None else points
    used = {path: p for path, p in known.items() if p.points <= time}
    wanted = Profile(exponent(width) if width is not None else float(gamma or 0), time)
    weights, error = posthoc_weights(list(used.values()), wanted)
    if error > _TOLERANCE:
        warnings.warn(
            f"{wanted} cannot be made of the {len(used)} snapshots in {folder}: its profile is off by {error:.0%}; store them more "
            "often, or choose a width between theirs"
        )
    with open_sources(list(used)) as sources:
        tied = dict(sources[-1].ties)
        combined = {name: _combined(name, sources, weights) for name in sources[-1].layout if name not in tied}
    return Synthesis(
        combined | {alias: combined[name] for alias, name in tied.items()},
        {path.name: weight for path, weight in zip(used, weights, strict=True)},
        error,
    )


def _combined(name: str, sources: Sequence[Source], weights: Sequence[float]) -> Tensor:
    """Averaged tensors combined, others as the newest snapshot has them."""
    dtype, _ = sources[-1].layout[name]
    if not is_averaged(dtype):
        return sources[-1].tensor(name).clone()
    return tensors.weighted_sum((source.tensor(name) for source in sources), weights)
