"""What a finished run is worth, and what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINT = "checkpoint.pt"
NETWORK = "model.safetensors"
MEMBER = "member-{}.safetensors"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """How one run ended.

    Attributes:
        method: name of the method.
        seed: of the run.
        top1: percentage of test images classified correctly.
        top5: percentage with the label among the five likeliest classes; None for five classes or fewer.
        nll: mean negative log-likelihood of the test labels, in nats.
        gradient_evaluations: minibatch gradients computed in training (T-budget).
        forward_passes: of a network for one prediction (I-budget).
        seconds: of training and evaluation, over all interruptions.
    """

    method: str
    seed: int
    top1: float
    top5: float | None
    nll: float
    gradient_evaluations: int
    forward_passes: int
    seconds: float


@dataclass(frozen=True)
class Divergence:
    """A run that ended early, because a loss was no longer finite. It is as final as a result: the same run would diverge again.

    Attributes:
        method: name of the method.
        seed: of the run.
        diverged: what was not finite, when, and what to do.
        gradient_evaluations: minibatch gradients computed until then.
        seconds: of training and evaluation, over all interruptions.
    """

    method: str
    seed: int
    diverged: str
    gradient_evaluations: int
    seconds: float
