"""Lookahead: k steps forward, one step back (Zhang, Lucas, Hinton and Ba, NeurIPS 2019)."""

from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from lookaround.optim import momentum
from lookaround.optim.adaptive import Adaptive
from lookaround.optim.branched import Branched
from lookaround.optim.checks import Alpha, Period, check_alpha
from lookaround.optim.outer import MakeOuter


class Lookahead(Branched):
    r"""Every k steps of the inner optimizer, move the slow weights φ towards the fast weights θ and start again from there.

    .. math:: \phi_t = \phi_{t-1} + \alpha (\theta_{t,k} - \phi_{t-1}), \qquad \theta_{t+1,0} = \phi_t

    φ starts at the weights the first step finds. It is kept in the parameters' dtype, in float32 for bfloat16 and float16; a
    round costs one pass over the weights every k steps and the memory of one more copy of them.

    Args:
        inner: any `torch.optim.Optimizer`, with any parameter groups.
        k: synchronization period: inner steps between two averages, at least 1, or a function of the round number (from 0).
        alpha: weight of the fast weights in an average, in [0, 1]; 1 is the inner optimizer alone, bit for bit. ``"adaptive"`` chooses it
            at every average by Proposition 1 of the paper, with the diagonal empirical Fisher for the curvature, clipped to
            [alpha_low, 1] (`lookaround.optim.adaptive.optimal_alpha`); the choice can be read from ``alpha``. A function of the round
            number (from 0) is evaluated at the round's start. The Fisher is the
            second moment of an Adam-type inner optimizer, else an exponential average of squared gradients kept here (one more copy
            of the weights; during the last step of a round another one).
        inner_state: what happens to the inner optimizer's momentum (SGD's and RMSprop's buffer, Adam's first moment) at an average:
            ``"maintain"`` keeps it; ``"interpolate"`` moves it as the weights, m ← m_φ + α (m - m_φ), where m_φ is the momentum at the
            last average and zero at first; ``"reset"`` sets it to zero. Adam's second moment and its step count, and so its bias
            corrections, stay as they are in every mode: after a reset its steps are short for about 1/(1 - β₁) steps.
        alpha_low: the least α of ``alpha="adaptive"``, in [0, 1].
        model: the module that is trained. With it its buffers (batch-norm running statistics) are averaged like the weights, and part
            of `averaged`; without it they are left alone.
        outer: an outer optimizer in the place of α: a function from parameters to a torch optimizer that moves φ with gradient φ - θ_k,
            e.g. ``lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)``, which is SNOO. ``alpha=a`` below 1 is plain SGD of
            rate a, bit for bit. It is kept as the attribute ``outer``, for its settings to be read and scheduled, and saved with the state.
            Buffers, and slow weights and momentum of what is inside, go to their mean.

    The settings live in the groups as ``lookahead_k`` and ``lookahead_alpha``, so they can be scheduled, each group's own α included;
    `around`, `branch`, `averaged`, `average` and `restart` are those of `Lookaround`, with one branch.

    Raises:
        TypeError: ``inner`` is no optimizer, or a setting is of another type.
        ValueError: k < 1, α or alpha_low outside [0, 1], an unknown ``inner_state``.

    Example:
        >>> from lookaround import Lookahead
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> weight.data  # from 1.0 to 0.8 in two steps, half-way back
        tensor([0.9000])

    Source: Algorithm 1; inner state: section 2 and appendix D.1; adaptive α: section 2.1 and Proposition 1. SNOO: arXiv 2510.15830.
    """

    name: ClassVar[str] = "lookahead"

    def __init__(
        self,
        inner: Optimizer,
        k: Period = 5,
        alpha: Alpha | Literal["adaptive"] = 0.5,
        inner_state: momentum.Mode = "maintain",
        *,
        alpha_low: float = 0.2,
        model: nn.Module | None = None,
        outer: MakeOuter | None = None,
    ) -> None:
        alpha_low = check_alpha(alpha_low, "alpha_low")
        if isinstance(alpha, str) and alpha != "adaptive":
            raise ValueError(f"alpha has to be a number between 0 and 1 or 'adaptive', got {alpha!r}")
        if outer is not None and alpha != 0.5:
            raise ValueError(f"either outer or alpha={alpha!r} moves the slow weights: leave one of them out")
        first = alpha_low if isinstance(alpha, str) else 1.0 if outer is not None else alpha
        adaptive = Adaptive(alpha_low) if isinstance(alpha, str) else None
        super().__init__(inner, 1, k, first, inner_state, model, outer=outer, adaptive=adaptive)
