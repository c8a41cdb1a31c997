"""A network with running statistics, trained by branches whose averages come late, or not."""

import copy

from torch.optim import SGD

from conformance.table import Net, batch
from lookaround import Lookaround
from reference.problems import INNERS


def nesterov(params):
    return SGD(params, lr=0.7, momentum=0.9, nesterov=True)


class Training:
    """A model, its optimizer, and the loops they may be in."""

    def __init__(self, branches=3, k=4, overlap=2, inner=INNERS["nesterov"], **settings):
        self.model = Net()
        settings.setdefault("model", self.model)
        self.optimizer = Lookaround(inner(list(self.model.parameters())), branches, k, overlap=overlap, **settings)

    def turn(self, step, branch, factor=1.0):
        self.optimizer.zero_grad()
        (self.model(batch(step, branch)).square().mean() * factor).backward()
        self.optimizer.step()

    def passes(self, first, last, way="around"):
        steps = range(first, last)
        if way == "around batches":
            for step, branch in self.optimizer.around(steps):
                self.turn(step, branch)
        else:
            for step in steps:
                for branch in self.optimizer.around() if way == "around" else range(self.optimizer.branches):
                    self.turn(step, branch)
        return self

    def end(self):
        return {k: v.clone() for k, v in self.model.state_dict().items()}, copy.deepcopy(self.optimizer.state_dict())
