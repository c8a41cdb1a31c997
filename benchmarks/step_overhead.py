"""What a wrapper adds to a step of the inner optimizer: SGD with momentum (foreach), 2 to 1,000 tensors of 64, k = 5.

No forward and no backward pass: the step alone, over gradients that stay. Every candidate takes as many inner steps, its averages
included, and is compared with as many steps of the inner optimizer alone. A floor is what the arithmetic cannot do without, for parameters
that keep their storage, written with no class around it: for Lookahead the inner steps and a lerp and a copy every k; for Lookaround's flat
loop the weights of one branch out of the model and another's into it at every step, and the mean every k; for `around(loader)` the same
every k steps. All of it runs in one thread, whose processor time is measured: what else the machine does is not in it. A model's forward
and backward passes come on top of all of them and bring the ratios nearer to one.

A turn of a candidate begins with the caches of the one before, which costs it a third of a millisecond and more: it takes 20 ms at least.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from itertools import repeat

import torch
from torch.optim import SGD, Optimizer

from benchmarks.harness import in_pairs, in_turns, machine, medians, table
from lookaround import Lookahead, Lookaround

K, BRANCHES = 5, 3
# Steps of one candidate before it is another one's turn, for each number of tensors.
STEPS = {2: 600, 20: 600, 160: 150, 1000: 60}
ALONE = "SGD with momentum alone"

Run = Callable[[], object]


def parameters(tensors: int) -> list[torch.nn.Parameter]:
    """That many parameters of 64 numbers with a gradient each."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(64)) for _ in range(tensors)]
    for param in params:
        param.grad = torch.randn(64)
    return params


def sgd(params: list[torch.nn.Parameter]) -> Optimizer:
    """The inner optimizer of every candidate."""
    return SGD(params, lr=1e-6, momentum=0.9, foreach=True)


def stepping(optimizer: Optimizer, steps: int) -> Run:
    """That many steps in a loop that knows nothing of branches."""

    def run() -> None:
        for _ in range(steps):
            optimizer.step()

    return run


def passing(optimizer: Lookaround, steps: int) -> Run:
    """As many steps in passes of `around()`."""

    def run() -> None:
        for _ in range(steps // BRANCHES):
            for _ in optimizer.around():
                optimizer.step()

    return run


def loading(optimizer: Lookaround, steps: int) -> Run:
    """As many steps over the minibatches of `around(loader)`."""

    def run() -> None:
        for _ in optimizer.around(repeat(None, steps // BRANCHES)):
            optimizer.step()

    return run


def _next_rate(optimizer: Optimizer) -> None:
    """What a scheduler does to the groups, and nothing else of it."""
    for group in optimizer.param_groups:
        group["lr"] *= 0.999


def scheduled(optimizer: Lookaround, steps: int) -> Run:
    """Passes of `around()`, each with a learning rate of its own."""

    def run() -> None:
        for _ in range(steps // BRANCHES):
            for _ in optimizer.around():
                optimizer.step()
            _next_rate(optimizer)

    return run


def scheduled_loading(optimizer: Lookaround, steps: int) -> Run:
    """Minibatches of `around(loader)`, each with a learning rate of its own."""

    def run() -> None:
        for _, branch in optimizer.around(repeat(None, steps // BRANCHES)):
            optimizer.step()
            if branch == 0:
                _next_rate(optimizer)

    return run


def _lookahead_floor(tensors: int) -> Run:
    """Inner steps, and every k one lerp and one copy over all tensors."""
    params = parameters(tensors)
    inner, slow = sgd(params), [p.detach().clone() for p in params]

    @torch.no_grad()
    def average() -> None:
        torch._foreach_lerp_(slow, params, 0.5)
        torch._foreach_copy_(params, slow)

    def run() -> None:
        for step in range(STEPS[tensors]):
            inner.step()
            if (step + 1) % K == 0:
                average()

    return run


class _Branches:
    """Weights of branches that wait, each in one flat buffer: a single `torch.cat` out of the parameters, one copy back."""

    def __init__(self, params: list[torch.nn.Parameter]) -> None:
        self.params = params
        self.flat = [torch.cat([p.detach() for p in params]) for _ in range(BRANCHES)]
        self.views = [list(flat.split(64)) for flat in self.flat]

    @torch.no_grad()
    def exchange(self, current: int, following: int) -> None:
        torch.cat(self.params, out=self.flat[current])
        torch._foreach_copy_(self.params, self.views[following])

    @torch.no_grad()
    def average(self, current: int) -> None:
        torch.cat(self.params, out=self.flat[current])
        mean = self.flat[0].add_(self.flat[1]).add_(self.flat[2]).mul_(1 / BRANCHES)
        for flat in self.flat[1:]:
            flat.copy_(mean)
        torch._foreach_copy_(self.params, self.views[0])


def _branch_floor(tensors: int, every: int) -> Run:
    """Three branches, each with an optimizer of its own: exchanged after ``every`` steps, averaged after K of each."""
    params = parameters(tensors)
    inners, branches = [sgd(params) for _ in range(BRANCHES)], _Branches(params)

    def run() -> None:
        for turn in range(STEPS[tensors] // BRANCHES // every):
            for branch, inner in enumerate(inners):
                for _ in range(every):
                    inner.step()
                if branch + 1 < BRANCHES:
                    branches.exchange(branch, branch + 1)
                elif (turn + 1) % (K // every) == 0:
                    branches.average(branch)
                else:
                    branches.exchange(branch, 0)

    return run


def lookaheads(tensors: int) -> Iterator[tuple[str, Run]]:
    """Lookahead of every library, and its floor."""
    import pytorch_optimizer
    import timm.optim
    import torch_optimizer

    steps = STEPS[tensors]
    yield "Lookahead", stepping(Lookahead(sgd(parameters(tensors)), k=K, alpha=0.5), steps)
    peers = {"pytorch_optimizer": pytorch_optimizer, "timm": timm.optim, "torch_optimizer": torch_optimizer}
    for name, library in peers.items():
        yield f"  {name}'s", stepping(library.Lookahead(sgd(parameters(tensors)), k=K, alpha=0.5), steps)
    yield "  floor", _lookahead_floor(tensors)


def lookarounds(tensors: int) -> Iterator[tuple[str, Run]]:
    """Lookaround's three loops, the floors of the first and the last, and the last two with a scheduler."""

    def wrapped() -> Lookaround:
        return Lookaround(sgd(parameters(tensors)), branches=BRANCHES, k=K)

    steps = STEPS[tensors]
    yield "Lookaround d = 3, flat loop", stepping(wrapped(), steps)
    yield "Lookaround d = 3, around()", passing(wrapped(), steps)
    yield "  floor: an exchange a step", _branch_floor(tensors, 1)
    yield "Lookaround d = 3, around(loader)", loading(wrapped(), steps)
    yield "  floor: an exchange every k steps", _branch_floor(tensors, K)
    yield "  around(), a rate a minibatch", scheduled(wrapped(), steps)
    yield "  around(loader), a rate a minibatch", scheduled_loading(wrapped(), steps)


def main(repeats: int = 25) -> None:
    """Print the ratios to the inner optimizer alone, for each number of tensors."""
    print(f"\n== A step, over the inner optimizer's ({machine()})")
    for tensors, steps in STEPS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peers' own deprecations
            candidates = dict([*lookaheads(tensors), *lookarounds(tensors)])
        everyone = {ALONE: stepping(sgd(parameters(tensors)), steps), **candidates}
        times = in_turns(everyone, repeats, clock=time.thread_time)
        title = f"{steps} steps, {tensors:,} tensors of 64"
        table(title, [*medians(times).items()], ALONE, in_pairs(times, ALONE))


if __name__ == "__main__":
    main()
