"""The hand-written loops frameworks are compared with, and what both are run on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lookaround import Lookahead, Lookaround

Wrap = Callable[[nn.Module], Optimizer]

# Rounds of six and of seven steps: everything saved in the middle of a training is saved in the middle of a round.
WRAPS: dict[str, Wrap] = {
    "lookahead": lambda model: Lookahead(SGD(model.parameters(), lr=0.05, momentum=0.9), k=7, alpha=0.5),
    "lookaround": lambda model: Lookaround(AdamW(model.parameters(), lr=0.01), branches=3, k=2, model=model),
    "lookaround, alpha": lambda m: Lookaround(SGD(m.parameters(), lr=0.05, momentum=0.9), 3, k=2, alpha=0.5, model=m),
}


def network(seed: int = 0) -> nn.Sequential:
    """With batch-norm statistics, for vectors of four and two classes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def batch(step: int, branch: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + branch)
    return torch.randn(6, 4, generator=generator), torch.randint(2, (6,), generator=generator)


def loss_of(model: nn.Module, step: int, branch: int = 0) -> Tensor:
    inputs, labels = batch(step, branch)
    return nn.functional.cross_entropy(model(inputs), labels)


def flat(model: nn.Module, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    """A loop that knows nothing of branches."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def closed(model: nn.Module, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    """The same with the forward pass in the closure of a step, so that the branches of a first round fork before it."""
    for step in range(first, first + steps):

        def closure(step: int = step) -> Tensor:
            loss = loss_of(model, step)
            optimizer.zero_grad()
            loss.backward()
            return loss

        optimizer.step(closure)


def around(model: nn.Module, optimizer: Lookahead | Lookaround, passes: int, first: int = 0) -> None:
    """The paper's loop: every branch in turn, each with a batch of its own."""
    for step in range(first, first + passes):
        for branch in optimizer.around():
            optimizer.zero_grad()
            loss_of(model, step, branch).backward()
            optimizer.step()


def start(name: str, seed: int = 0) -> tuple[nn.Sequential, Optimizer]:
    model = network(seed)
    return model, WRAPS[name](model)


def by_hand(name: str, loop: Callable[..., None], steps: int) -> tuple[nn.Sequential, Optimizer]:
    model, optimizer = start(name)
    loop(model, optimizer, steps)
    return model, optimizer


def shown(model: nn.Module, optimizer: Lookahead | Lookaround) -> dict[str, Tensor]:
    """The model's state with the average in it."""
    with optimizer.averaged():
        return {name: value.detach().clone() for name, value in model.state_dict().items()}
