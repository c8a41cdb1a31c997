"""Names for settings that have beaten a tuned baseline on fresh seeds, with what was measured beside them.

A setting gets a name here when its gain over the tuned baseline stands on seeds that chose nothing, after correction for all comparisons
made, and what it does not gain is said as plainly. Where nothing does, the guide says so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A method with settings, under a name of its own.

    Attributes:
        method: as a user would write it.
        summary: what it is for, in a line.
        evidence: what was measured, and where it is no better.
    """

    method: str
    summary: str
    evidence: str


PRESETS = {
    "anytime": Preset(
        "power-ema:width=0.1,schedule=constant",
        "a good model at any time, without a decay of the rate or a planned end",
        "Digits, an MLP, 300 gradients: NLL 0.024 ± 0.011 (own copies of a minibatch for each augmentation) and 0.023 ± 0.008 (shared "
        "ones) below SGD's with a cosine, each tuned over 18 settings, ten fresh seeds, p = 0.043 and 0.008 (Holm); at 3,000 gradients "
        "0.009 ± 0.003 with shared copies (p = 0.006). Photographs, a small CNN, 9,600 samples: 0.038 ± 0.010 (p = 0.015); a "
        "language model around AdamW, 371,700 tokens: 0.062 ± 0.013 (p = 0.009), five fresh seeds each. Level with SGD whose "
        "schedule is tuned too (0.040 ± 0.022 behind at 30,000 photographs), 0.010 ± 0.003 below such an AdamW, 0.018 to 0.155 behind "
        "AdamW at β₁ = 0.6; level with the cosine at the other budgets of these tasks and in fine-tuning. "
        "With 30 % random labels it costs 0.029 ± 0.012 nats at 300 gradients and 4.0 ± 0.6 points of accuracy at 3,000. "
        "docs/results/map.md, photographs.md, language.md",
    ),
}
"""Every preset by name; settings that are written behind its name come on top, such as ``anytime:lr=0.2``."""
