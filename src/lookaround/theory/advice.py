"""Advice from theory: what k, α and d should do to the steady-state loss of a model whose curvature and noise were measured.

Around a minimum a model is a noisy quadratic in the eigenvectors of its Hessian: curvature aᵢ from Lanczos, noise σᵢ² = Var(vᵢᵀg)/aᵢ²
from a few minibatches. The sharp directions are answered exactly. The rest is too many to resolve and does not need it: where
γa is small, SGD's share of the loss is γ/4 times the gradient variance whatever a is, and α/d times that for the averaging
methods, so the total noise outside the sharp directions is enough. That share is reached only after 1/(γa) steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaround.theory.arrays import ArrayLike, non_negative, positive, spectrum
from lookaround.theory.curvature import Loss, gradient_noise, top_eigenvalues
from lookaround.theory.noisy_quadratic import steady_state_loss

FLAT = 1e-5  # γa of the stand-in for all flat directions: the answer does not depend on it to that relative error


@dataclass(frozen=True)
class Candidate:
    """A method and its settings, as `steady_state_variance` takes them.

    Source: the settings of the Lookahead paper, algorithm 1, and of the Lookaround paper, algorithm 1.
    """

    method: str
    k: int = 5
    alpha: float = 1.0
    branches: int = 1

    def __str__(self) -> str:
        averages = self.method.startswith("look")
        period = f" k={self.k}" if averages else ""
        copies = f" d={self.branches}" if self.branches > 1 else ""
        return self.method + period + copies + (f" α={self.alpha:g}" if averages else "")

    @property
    def evaluations(self) -> int:
        """Gradient evaluations in one inner step: the price."""
        return self.branches


CANDIDATES = (
    Candidate("sgd"),
    Candidate("lookahead", k=5, alpha=0.5),
    Candidate("lookahead", k=5, alpha=0.8),
    Candidate("lookahead", k=20, alpha=0.5),
    Candidate("lookaround", k=5, branches=2),
    Candidate("lookaround", k=5, branches=3),
    Candidate("lookaround", k=20, branches=3),
)


@dataclass(frozen=True)
class Prediction:
    """Predicted steady-state loss above the minimum: all of it, its sharp and flat shares, and the ratio to plain SGD's.

    Source: Lookahead paper, Proposition 2; Lookaround paper, Proposition 1 (corrected).
    """

    candidate: Candidate
    sharp: float
    flat: float
    ratio: float

    @property
    def excess_loss(self) -> float:
        return self.sharp + self.flat


@dataclass(frozen=True)
class Comparison:
    """A prediction beside the excess loss that a real run of its candidate measured, and that run's ratio to SGD's.

    Source: the prediction as in `Prediction`; the comparison with real runs is ours.
    """

    prediction: Prediction
    measured: float
    ratio: float


def predict(
    curvature: ArrayLike,
    noise: ArrayLike,
    lr: float,
    *,
    flat_noise: float = 0.0,
    momentum: float = 0.0,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> list[Prediction]:
    """Steady-state excess loss of every candidate at one learning rate.

    Args:
        curvature: sharp curvatures aᵢ, above 0.
        noise: gradient variances along their directions, aᵢ²σᵢ².
        lr: learning rate γ, below 2(1 + momentum)/max(a).
        flat_noise: gradient variance summed over all other directions.
        momentum: β of the inner SGD.
        candidates: what to predict.

    Raises:
        ValueError: a setting outside its range, for instance a learning rate above the edge of stability.

    Example:
        >>> from lookaround.theory import Candidate, predict
        >>> sgd, ahead = predict([1.0], [1.0], 0.1, candidates=[Candidate("sgd"), Candidate("lookahead", k=5, alpha=0.5)])
        >>> round(sgd.excess_loss, 5), round(ahead.ratio, 3)    # γ a σ²/(2 - γ a)/2; between α/(2 - α) and α
        (0.02632, 0.443)

    Source: Lookahead paper, Proposition 2; Lookaround paper, Proposition 1 (corrected).
    """
    a = spectrum("curvature", curvature)
    gradient_variance = torch.atleast_1d(non_negative("noise", noise))
    rest = non_negative("flat_noise", flat_noise)
    flat_curvature = FLAT / torch.atleast_1d(positive("lr", lr))

    def shares(candidate: Candidate) -> tuple[float, float]:
        sharp = _excess(candidate, a, gradient_variance, lr, momentum)
        return sharp, _excess(candidate, flat_curvature, rest, lr, momentum)

    baseline = sum(shares(Candidate("sgd")))
    parts = [(candidate, *shares(candidate)) for candidate in candidates]
    return [
        Prediction(candidate, sharp, flat, (sharp + flat) / baseline if baseline else float("nan"))
        for candidate, sharp, flat in parts
    ]


def _excess(candidate: Candidate, a: Tensor, gradient_variance: Tensor, lr: float, momentum: float) -> float:
    loss = steady_state_loss(
        candidate.method,
        a,
        gradient_variance / a**2,
        lr,
        excess=True,
        k=candidate.k,
        alpha=candidate.alpha,
        branches=candidate.branches,
        momentum=momentum,
    )
    return float(loss)


def advise(
    loss: Loss,
    minibatch_losses: Iterable[Loss],
    parameters: Sequence[Tensor],
    lr: float,
    *,
    count: int = 10,
    momentum: float = 0.0,
    candidates: Sequence[Candidate] = CANDIDATES,
    seed: int = 0,
) -> list[Prediction]:
    """Measure a model where it stands (near a minimum) and predict the steady-state excess loss of every candidate.

    Args:
        loss: the full loss, deterministic.
        minibatch_losses: closures of a few minibatches, drawn and augmented as in training; a dozen gives the noise to about 40 %
            along each direction and far better summed.
        parameters: the parameters that train.
        lr, momentum: of the inner SGD.
        count: sharp directions to resolve; those with curvature at or below 0 count as flat.
        candidates, seed: as in `predict` and `top_eigenvalues`.

    Raises:
        ValueError: as `top_eigenvalues`, `gradient_noise` and `predict`; no positive curvature at all.

    Example:
        >>> import torch
        >>> from lookaround.theory import advise
        >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> batches = [lambda c=c: ((x - c) ** 2).sum() / 2 for c in (-1.0, 1.0, -1.0, 1.0)]
        >>> rows = advise(lambda: (x**2).sum() / 2, batches, [x], lr=0.1, count=1)
        >>> [round(row.ratio, 3) for row in rows if row.candidate.method == "lookaround"]
        [0.5, 0.333, 0.333]

    Source: the noisy quadratic of the Lookahead paper, section 3.1, with curvature and noise measured; that it
    predicts a network is ours to test.
    """
    pairs = top_eigenvalues(loss, parameters, count, seed=seed)
    sharp = pairs.values > 0
    if not bool(sharp.any()):
        raise ValueError(
            f"no positive curvature to work with: the largest eigenvalue found is {float(pairs.values[0]):.6g}"
        )
    noise = gradient_noise(minibatch_losses, parameters, pairs.vectors[sharp.to(pairs.vectors.device)])
    along = noise.along.cpu()
    flat_noise = max(0.0, noise.total - float(along.sum()))
    return predict(pairs.values[sharp], along, lr, flat_noise=flat_noise, momentum=momentum, candidates=candidates)


def compare(predictions: Sequence[Prediction], run: Callable[[Candidate], float]) -> list[Comparison]:
    """Run every candidate, and plain SGD for the ratio where it is not among them.

    Args:
        predictions: from `advise` or `predict`.
        run: trains a candidate for a while and returns the loss of its averaged weights above the minimum.

    Source: as `predict`, held against real runs, which is ours.
    """
    measured = {prediction.candidate: run(prediction.candidate) for prediction in predictions}
    plain = [excess for candidate, excess in measured.items() if candidate.method == "sgd"]
    baseline = plain[0] if plain else run(Candidate("sgd"))
    return [
        Comparison(prediction, measured[prediction.candidate], measured[prediction.candidate] / baseline)
        for prediction in predictions
    ]


def format_advice(rows: Sequence[Prediction] | Sequence[Comparison]) -> str:
    """A table of predictions, with what real runs measured beside them where there are any.

    Example:
        >>> from lookaround.theory import Candidate, format_advice, predict
        >>> print(format_advice(predict([1.0], [1.0], 0.1, candidates=[Candidate("lookaround", branches=3)])))
        method                     gradients/step   excess loss   ratio to SGD
        lookaround k=5 d=3 α=1                  3     8.772e-03          0.333

    Source: ours.
    """
    measured = any(isinstance(row, Comparison) for row in rows)
    header = f"{'method':<26} {'gradients/step':>14} {'excess loss':>13} {'ratio to SGD':>14}"
    lines = [header + (f" {'measured':>13} {'its ratio':>11}" if measured else "")]
    for row in rows:
        prediction = row.prediction if isinstance(row, Comparison) else row
        line = f"{prediction.candidate!s:<26} {prediction.candidate.evaluations:>14} {prediction.excess_loss:>13.3e}"
        line += f" {prediction.ratio:>14.3f}"
        lines.append(line + (f" {row.measured:>13.3e} {row.ratio:>11.3f}" if isinstance(row, Comparison) else ""))
    return "\n".join(lines)
