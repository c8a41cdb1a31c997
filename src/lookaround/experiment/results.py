"""What a run is worth, and what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHECKPOINT = "checkpoint.pt"
NETWORK = "model.safetensors"
MEMBER = "member-{}.safetensors"
RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """How one run ended.

    Attributes:
        method: the method's label.
        settings: all of its settings.
        seed: of the run.
        task: the digest of what makes runs comparable.
        split: what the metrics were measured on, ``"test"`` or ``"held-out"``.
        metrics: by name; None for a run that diverged.
        diverged: what was not finite, when, and what to do; None for a run that reached its end. A divergence is as final as a
            result: the same run would diverge again.
        unit: of the budget.
        budget: that the run was given.
        spent: of it.
        gradient_evaluations: minibatch gradients computed in training (T-budget).
        forward_passes: of a network for one prediction (I-budget).
        seconds: of training and evaluation, over all interruptions.
    """

    method: str
    settings: Mapping[str, Any]
    seed: int
    task: str
    split: str
    metrics: Mapping[str, float] | None
    diverged: str | None
    unit: str
    budget: int
    spent: int
    gradient_evaluations: int
    forward_passes: int
    seconds: float
