"""The papers' algorithms as their nested loops, slow and plain: every branch has weights and an inner optimizer of its own.

Nothing here knows of the package under test. ``gradient(branch, step, weights)`` gives the gradients of one branch at its ``step``-th
step, ``make_inner(params)`` an optimizer of torch. Each function yields what the weights are after every inner step, as a list over the
branches of lists of tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

Gradient = Callable[[int, int, Sequence[Tensor]], Sequence[Tensor]]
MakeInner = Callable[[list[torch.nn.Parameter]], Optimizer]
Weights = list[Tensor]

MOMENTUM = ("momentum_buffer", "exp_avg")


def inner_step(params: list[torch.nn.Parameter], inner: Optimizer, gradients: Sequence[Tensor]) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()
    inner.step()


def copies(weights: Sequence[Tensor]) -> Weights:
    return [w.detach().clone() for w in weights]


def lookahead(
    start: Sequence[Tensor],
    gradient: Gradient,
    make_inner: MakeInner,
    rounds: int,
    k: Callable[[int], int],
    alpha: float,
) -> Iterator[list[Weights]]:
    """Zhang et al. 2019, Algorithm 1: for t: θ ← φ; for i in 1..k: θ ← A(θ); φ ← φ + α (θ - φ)."""
    slow = copies(start)
    fast = [torch.nn.Parameter(w) for w in copies(start)]
    inner = make_inner(fast)
    step = 0
    for t in range(rounds):
        for i in range(k(t)):
            inner_step(fast, inner, gradient(0, step, fast))
            step += 1
            if i == k(t) - 1:
                slow = [phi + alpha * (theta.detach() - phi) for phi, theta in zip(slow, fast, strict=True)]
                put(fast, slow)
            yield [copies(fast)]


def lookaround(
    start: Sequence[Tensor],
    gradient: Gradient,
    make_inner: MakeInner,
    rounds: int,
    k: Callable[[int], int],
    branches: int,
    alpha: float = 1.0,
    inner_state: str = "maintain",
    restarts: Mapping[int, Sequence[Tensor]] | None = None,
) -> Iterator[list[Weights]]:
    """Zhang et al. 2023, Algorithm 1: for t: for i in 1..k: for j in 1..d: θ_j ← A_j(θ_j); φ ← φ + α (mean_j θ_j - φ); θ_j ← φ.

    After a step among ``restarts`` a new round starts from the weights given there.
    """
    slow = copies(start)
    fast = [[torch.nn.Parameter(w) for w in copies(start)] for _ in range(branches)]
    inner = [make_inner(params) for params in fast]
    slow_momentum: dict[tuple[int, str], Tensor] = {}
    restarts = restarts or {}
    step = 0
    for t in range(rounds):
        for i in range(k(t)):
            for j in range(branches):
                inner_step(fast[j], inner[j], gradient(j, step, fast[j]))
            step += 1
            ends = i == k(t) - 1
            if ends:
                mean = [sum(t.detach() for t in column) / branches for column in zip(*fast, strict=True)]
                slow = [phi + alpha * (m - phi) for phi, m in zip(slow, mean, strict=True)]
            if step in restarts:
                slow = copies(restarts[step])
            if ends or step in restarts:
                for j in range(branches):
                    put(fast[j], slow)
                treat_momentum(inner_state, fast, inner, slow_momentum, alpha)
            yield [copies(params) for params in fast]
            if step in restarts:
                break


def treat_momentum(
    mode: str,
    fast: list[list[torch.nn.Parameter]],
    inner: list[Optimizer],
    slow: dict[tuple[int, str], Tensor],
    alpha: float,
) -> None:
    """Zhang et al. 2019, section 2 and appendix D.1, for the mean of the branches' momentum."""
    if mode == "maintain":
        return
    for i in range(len(fast[0])):
        entries = [optimizer.state[params[i]] for params, optimizer in zip(fast, inner, strict=True)]
        for name in set(MOMENTUM) & set(entries[0]):
            mean = sum(entry[name] for entry in entries) / len(entries)
            before = slow.get((i, name), torch.zeros_like(mean))
            slow[i, name] = torch.zeros_like(mean) if mode == "reset" else before + alpha * (mean - before)
            for entry in entries:
                entry[name] = slow[i, name].clone()


def put(params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)


def sam(
    start: Sequence[Tensor], gradient: Gradient, make_inner: MakeInner, steps: int, rho: float, adaptive: bool = False
) -> Iterator[Weights]:
    """Foret et al. 2021, Algorithm 1: ε = ρ g / ‖g‖ with g = ∇L(w); w ← A(w, ∇L(w + ε)). Kwon et al. 2021 scale it by |w|."""
    weights = [torch.nn.Parameter(w) for w in copies(start)]
    inner = make_inner(weights)
    for step in range(steps):
        first = [g.detach() for g in gradient(0, step, weights)]
        scale = [w.detach().abs() if adaptive else torch.ones_like(w) for w in weights]
        norm = sum(float((s * g).double().square().sum()) for s, g in zip(scale, first, strict=True)) ** 0.5
        climbed = [
            w.detach() + rho * s * s * g / norm if norm else w.detach()
            for w, s, g in zip(weights, scale, first, strict=True)
        ]
        inner_step(weights, inner, gradient(0, step, climbed))
        yield copies(weights)


def outer(
    start: Sequence[Tensor],
    gradient: Gradient,
    make_inner: MakeInner,
    make_outer: MakeInner,
    rounds: int,
    k: int,
    branches: int,
) -> Iterator[list[Weights]]:
    """Douillard et al. 2023 (DiLoCo), Algorithm 1: Δ = mean_j (φ - θ_j); φ ← OuterOpt(φ, Δ). With one branch SNOO (2510.15830).

    φ is kept in float32 for 16-bit weights.
    """
    dtypes = [torch.float32 if w.dtype.itemsize < 4 else w.dtype for w in start]
    slow = [torch.nn.Parameter(w.to(d)) for w, d in zip(copies(start), dtypes, strict=True)]
    moves = make_outer(slow)
    fast = [[torch.nn.Parameter(w) for w in copies(start)] for _ in range(branches)]
    inner = [make_inner(params) for params in fast]
    for step in range(rounds * k):
        for j in range(branches):
            inner_step(fast[j], inner[j], gradient(j, step, fast[j]))
        if step % k == k - 1:
            columns = list(zip(*fast, strict=True))
            for phi, column in zip(slow, columns, strict=True):
                phi.grad = phi.detach() - sum(t.detach().to(phi.dtype) for t in column) / branches
            moves.step()
            for params in fast:
                put(params, slow)
        yield [copies(params) for params in fast]


Step = Callable[[Weights, Weights, list[Tensor]], tuple[Weights, list[Tensor]]]


def alpha_step(alpha: float) -> Step:
    """φ ← φ + α (mean - φ)."""
    return lambda slow, mean, kept: ([p + alpha * (m - p) for p, m in zip(slow, mean, strict=True)], kept)


def nesterov_step(rate: float, momentum: float) -> Step:
    """DiLoCo's: b ← μ b + (φ - mean), φ ← φ - η (φ - mean + μ b)."""

    def step(slow: Weights, mean: Weights, kept: list[Tensor]) -> tuple[Weights, list[Tensor]]:
        away = [p - m for p, m in zip(slow, mean, strict=True)]
        kept = [momentum * b + g for b, g in zip(kept or [0.0] * len(away), away, strict=True)]
        return [p - rate * (g + momentum * b) for p, g, b in zip(slow, away, kept, strict=True)], kept

    return step


def overlapped(
    start: Sequence[Tensor],
    gradient: Gradient,
    make_inner: MakeInner,
    rounds: int,
    k: Callable[[int], int],
    branches: int,
    overlap: int,
    move: Step,
    inner_state: str = "maintain",
) -> Iterator[tuple[list[Weights], Weights]]:
    """Lookaround whose averages come ``overlap`` steps late: s_j ← θ_j at a round's end; later φ ← move(φ, mean_j s_j),
    θ_j ← θ_j + (φ - s_j), at the next round's end at the latest.

    Yields, after every step, the weights of all branches, and what an average shows: move(φ, mean_j θ_j), where all that is on its way
    has come.
    """
    slow, kept = copies(start), []
    fast = [[torch.nn.Parameter(w) for w in copies(start)] for _ in range(branches)]
    inner = [make_inner(params) for params in fast]
    sent: list[Weights] | None = None
    step = 0

    def landed() -> tuple[Weights, list[Tensor], list[Weights]]:
        if sent is None:
            return slow, kept, [copies(params) for params in fast]
        there, its = move(slow, mean_of(sent), kept)
        ways = [
            [p + (f - s) for p, f, s in zip(params, there, of, strict=True)]
            for params, of in zip(fast, sent, strict=True)
        ]
        return there, its, [copies(way) for way in ways]

    for t in range(rounds):
        for i in range(k(t)):
            for j in range(branches):
                inner_step(fast[j], inner[j], gradient(j, step, fast[j]))
            step += 1
            ends = i == k(t) - 1
            if sent is not None and (ends or i + 1 == overlap):
                slow, kept, now = landed()
                for params, values in zip(fast, now, strict=True):
                    put(params, values)
                if inner_state == "reset":
                    treat_momentum("reset", fast, inner, {}, 1.0)
                sent = None
            there, its, now = landed()
            shown = move(there, mean_of(now), its)[0]
            if ends:
                sent = [copies(params) for params in fast]
            yield [copies(params) for params in fast], shown


def mean_of(branches: Sequence[Weights]) -> Weights:
    return [sum(t.detach() for t in column) / len(branches) for column in zip(*branches, strict=True)]
