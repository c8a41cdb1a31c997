"""Every optimizer of torch, timm and pytorch_optimizer, found by asking the libraries: a new one joins by itself."""

import importlib.util
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[..., Optimizer]
Shapes = tuple[tuple[int, ...], ...]

RATE = 0.01
SHAPES: Shapes = ((4, 3), (2, 3, 2, 2), (5,))
MATRICES: Shapes = ((4, 3), (3, 4))

# What cannot be built from parameters and a learning rate on a CPU, and the error that says so.
NOT_BUILT: dict[str, str] = {
    **dict.fromkeys(
        ("timm.bnb" + n for n in ("adam", "adamw", "ademamix", "lion", "sgd")), "CUDA required for bitsandbytes"
    ),
    **dict.fromkeys(
        (f"timm.bnb{n}8bit" for n in ("adam", "adamw", "ademamix", "lion", "sgd")), "CUDA required for bitsandbytes"
    ),
    **dict.fromkeys(("timm.fused" + n for n in ("adam", "adamw", "lamb", "novograd", "sgd")), "CUDA required for APEX"),
    "pytorch_optimizer.adalomo": "named_parameters",  # takes the model
    "pytorch_optimizer.adammini": "named_parameters",  # takes the model
    "pytorch_optimizer.lomo": "parameters",  # takes the model
    "pytorch_optimizer.demo": "einops|process group",  # a dependency of its own, and processes
    "pytorch_optimizer.distributedmuon": "process group",  # processes
}
# What a few ask for beside parameters and a learning rate; what makes Kron draw from the generator it keeps; fewer evaluations a step.
ARGUMENTS = {
    "pytorch_optimizer.bsam": {"num_data": 10},
    "pytorch_optimizer.ranger21": {"num_iterations": 50},
    **{key: {"deterministic": True} for key in ("timm.kron", "timm.kronc", "timm.kronw")},
    **{key: {"max_iter": 3} for key in ("torch.LBFGS", "pytorch_optimizer.lbfgs")},
}
ONLY_MATRICES = {"torch.Muon": MATRICES, "pytorch_optimizer.spectralsphere": MATRICES}
ONLY_FACTORS = {"pytorch_optimizer.lorarite": ((2, 3), (4, 2))}
MARKED_GROUPS = {
    f"pytorch_optimizer.{name}" for name in ("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon")
}
# What evaluates the gradient itself; what differentiates it again; what takes sparse gradients alone.
EVALUATES = {"torch.LBFGS", "pytorch_optimizer.lbfgs", "pytorch_optimizer.bsam"}
SECOND_ORDER = {"timm.adahessian", "pytorch_optimizer.adahessian", "pytorch_optimizer.sophiah"}
SPARSE = {"torch.SparseAdam"}


def torchs() -> Iterator[tuple[str, Build]]:
    classes = (c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, Optimizer))
    for cls in sorted(set(classes) - {Optimizer}, key=lambda c: c.__name__):
        yield cls.__name__, partial(cls, lr=RATE)


def timms() -> Iterator[tuple[str, Build]]:
    import timm.optim

    for name in timm.optim.list_optimizers():
        yield name, partial(timm.optim.create_optimizer_v2, opt=name, lr=RATE)


def peers() -> Iterator[tuple[str, Build]]:
    import pytorch_optimizer

    for name in pytorch_optimizer.get_supported_optimizers():
        yield name, partial(pytorch_optimizer.load_optimizer(name), lr=RATE)


def everything() -> dict[str, Build]:
    """All of them by "library.name"; torch's alone where the other two are not installed."""
    found = {"torch": torchs, "timm": timms, "pytorch_optimizer": peers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            f"{library}.{name}": build
            for library, optimizers in found.items()
            if importlib.util.find_spec(library)
            for name, build in optimizers()
        }


EVERYTHING = everything()


def parameters(name: str, seed: int, dtype: torch.dtype) -> list[nn.Parameter]:
    """Small tensors of the kinds an optimizer takes, the last one zeros: what a first move of 1e-8 can be seen on."""
    shapes = {**ONLY_MATRICES, **ONLY_FACTORS}.get(name, SHAPES)
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [nn.Parameter(t * 0 if i == len(shapes) - 1 else t) for i, t in enumerate(drawn)]


def build(name: str, params: list[nn.Parameter]) -> Optimizer:
    """The optimizer of that name, in the mode in which it trains."""
    marked = [{"params": [p for p in params if (p.ndim > 1) == muon], "use_muon": muon} for muon in (True, False)]
    optimizer = EVERYTHING[name](marked if name in MARKED_GROUPS else params, **ARGUMENTS.get(name, {}))
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


class Run:
    """Parameters and an optimizer of that name around which something may be wrapped, and steps of it."""

    def __init__(
        self,
        name: str,
        wrap: Callable[[Optimizer], Optimizer] = lambda inner: inner,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name
        self.params = parameters(name, seed, dtype)
        self.optimizer = wrap(build(name, self.params))

    def step(self, step: int) -> list[Tensor]:
        """Take that step, with the gradients and the random numbers of its number, and copy the weights after it."""
        for seeder in (torch.manual_seed, np.random.seed, random.seed):
            seeder(step)
        closure = self._closure(step)
        loss = closure()
        self.optimizer.step(closure if self.name in EVALUATES else lambda: loss)
        return [p.detach().clone() for p in self.params]

    def _closure(self, step: int) -> Callable[[], Tensor]:
        """A bowl with a slope that is another one in every step, and the same in every branch."""
        generator = torch.Generator().manual_seed(1000 + step)
        slopes = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in self.params]

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            parts = [(p * g).sum() + p.square().sum() / 2 for p, g in zip(self.params, slopes, strict=True)]
            loss = torch.stack(parts).sum()
            loss.backward(create_graph=self.name in SECOND_ORDER)
            if self.name in SPARSE:
                for p in self.params:
                    p.grad = p.grad.to_sparse()
            return loss.detach()

        return closure
