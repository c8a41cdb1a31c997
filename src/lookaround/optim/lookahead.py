"""Lookahead: k steps forward, one step back (Zhang, Lucas, Hinton and Ba, NeurIPS 2019)."""

from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer

from lookaround.optim import adaptive, momentum
from lookaround.optim.checks import Period, check_alpha
from lookaround.optim.rounds import Rounds
from lookaround.optim.wrapper import Closure
from lookaround.tensors import clone


class Lookahead(Rounds):
    r"""Every k steps of the inner optimizer, move the slow weights φ towards the fast weights θ and start again from there.

    .. math:: \phi_t = \phi_{t-1} + \alpha (\theta_{t,k} - \phi_{t-1}), \qquad \theta_{t+1,0} = \phi_t

    φ starts at the weights the first step finds. It is kept in the parameters' dtype, in float32 for bfloat16 and float16; a
    round costs one pass over the weights every k steps and the memory of one more copy of them.

    Args:
        inner: any `torch.optim.Optimizer`, with any parameter groups.
        k: synchronization period: inner steps between two averages, at least 1, or a function of the round number (from 0).
        alpha: weight of the fast weights in an average, in [0, 1]; 1 is the inner optimizer alone, bit for bit. ``"adaptive"`` chooses it
            at every average by Proposition 1 of the paper, with the diagonal empirical Fisher for the curvature, clipped to
            [alpha_low, 1] (`lookaround.optim.adaptive.optimal_alpha`); the choice can be read from ``alpha``. The Fisher is the
            second moment of an Adam-type inner optimizer, else an exponential average of squared gradients kept here (one more copy
            of the weights; during the last step of a round another one).
        inner_state: what happens to the inner optimizer's momentum (SGD's and RMSprop's buffer, Adam's first moment) at an average:
            ``"maintain"`` keeps it; ``"interpolate"`` moves it as the weights, m ← m_φ + α (m - m_φ), where m_φ is the momentum at the
            last average and zero at first; ``"reset"`` sets it to zero. Adam's second moment and its step count, and so its bias
            corrections, stay as they are in every mode: after a reset its steps are short for about 1/(1 - β₁) steps.
        alpha_low: the least α of ``alpha="adaptive"``, in [0, 1].

    The settings live in the groups as ``lookahead_k`` and ``lookahead_alpha``, so they can be scheduled, each group's own α included;
    `around`, `branch`, `averaged`, `average` and `restart` are those of `Lookaround`, with one branch.

    Raises:
        TypeError: ``inner`` is no optimizer, or a setting is of another type.
        ValueError: k < 1, α or alpha_low outside [0, 1], an unknown ``inner_state``.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> weight.data  # from 1.0 to 0.8 in two steps, half-way back
        tensor([0.9000])

    Source: Algorithm 1; inner state: section 2 and appendix D.1; adaptive α: section 2.1 and Proposition 1.
    """

    name: ClassVar[str] = "lookahead"

    def __init__(
        self,
        inner: Optimizer,
        k: Period = 5,
        alpha: float | Literal["adaptive"] = 0.5,
        inner_state: momentum.Mode = "maintain",
        *,
        alpha_low: float = 0.2,
    ) -> None:
        self._adaptive = alpha == "adaptive"
        self._alpha_low = check_alpha(alpha_low, "alpha_low")
        if isinstance(alpha, str) and not self._adaptive:
            raise ValueError(f"alpha has to be a number between 0 and 1 or 'adaptive', got {alpha!r}")
        number = self._alpha_low if isinstance(alpha, str) else alpha
        super().__init__(inner, 1, k, number, inner_state)

    def _inner_step(self, closure: Closure | None) -> Any:
        if not self._adaptive:
            return super()._inner_step(closure)
        last = self._get("step") + self._get("taken") + 1 >= self.k
        before = clone(self._params()) if last else []
        loss = super()._inner_step(closure)
        adaptive.observe(self)
        if last:
            self.alpha = self._best_alpha(before, adaptive.curvature(self))
        return loss

    def _needs_slow(self) -> bool:
        return self._adaptive or super()._needs_slow()

    def _best_alpha(self, before: list[Tensor], curvature: dict[int, Tensor]) -> float:
        """Proposition 1 over all parameters that have a gradient, the last gradient carried on to the last weights."""
        slow, params = self._tensors("slow"), self._params()
        at = [i for i in curvature if i in slow]
        gradients = [params[i].grad for i in at]
        lists = ([slow[i] for i in at], [before[i] for i in at], [params[i] for i in at])
        dense = [g.to_dense() if g.is_sparse else g for g in gradients if g is not None]
        return adaptive.optimal_alpha(*lists, dense, [curvature[i] for i in at], self._alpha_low)
