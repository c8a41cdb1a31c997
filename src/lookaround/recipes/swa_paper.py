"""Stochastic Weight Averaging Revisited (Guo et al. 2022): Tables 1 and 2, Figures 1-5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lookaround.experiment import Budget, Plan
from lookaround.methods import Spec
from lookaround.recipes.base import Part, Recipe, Row, rows, spec
from lookaround.tasks.vision import VisionConfig

Small = Literal["cifar10", "cifar100"]
Network = Literal["vgg16", "preresnet164", "wrn-28-10"]
IZMAILOV = (
    "the schedule is that of the SWA authors' code: constant for half of the time before SWA, a line until nine tenths, then SWA's rate",
)
_OPEN = (
    *IZMAILOV,
    "the epochs that SWA itself takes, n, and most learning rates are not in the paper: here SWA takes as many epochs as given",
)
# Section 5: the example of figure 9, which is all that is printed of rates.
_HIGH, _LOW = 0.05, 0.01


def izmailov(start: float, ratio: float, *, swa: bool = True) -> dict[str, Any]:
    """The schedule before SWA, and SWA at ``ratio`` times the peak from the part ``start`` of the run on.

    >>> izmailov(0.5, 0.1)["milestones"]
    (0.25, 0.45)
    """
    lead = {"schedule": "ramp", "milestones": (0.5 * start, 0.9 * start), "gamma": ratio, "warmup": 0}
    return {**lead, "swa_start": start, "swa_lr": ratio} if swa else lead


def _plain(**changes: Any) -> dict[str, Any]:
    """No momentum and no weight decay, as everywhere in the paper."""
    return {"lr": _HIGH, "momentum": 0, "weight_decay": 0, "batch": 128, **changes}


def _plan(data: Small, model: str, methods: Mapping[str, Spec], epochs: int) -> Plan:
    config = VisionConfig(
        data=data, root="data", model=model, branches=1, augmentations=("horizontal-flip",), crop_padding=4
    )
    return Plan("vision", config, tuple(methods.values()), (0,), Budget(epochs=epochs))


def _before_and_after(
    data: Small, model: str, paper: Mapping[str, float], *, lead: int, epochs: int, folds: tuple[str, ...]
) -> tuple[Part, Part]:
    """SGD alone as long as it runs before SWA, and SWA in folds after as much SGD."""
    before = {"SGD": spec("sgd", **_plain(), **izmailov(1.0, _LOW / _HIGH, swa=False))}
    whole = lead + epochs
    after = {name.upper(): spec(name, **_plain(), **izmailov(lead / whole, _LOW / _HIGH)) for name in folds}
    printed = {name: {"top1": value} for name, value in paper.items()}
    first = Part(f"{data}-{model}-before", _plan(data, model, before, lead), rows(before, printed))
    return first, Part(f"{data}-{model}-after", _plan(data, model, after, whole), rows(after, printed))


def table_1(epochs: int = 30) -> Recipe:
    """A toy CNN on CIFAR-10: SWA and DSWA after an SGD that has not converged."""
    paper = {"SGD": 57.06, "SWA": 67.16, "DSWA": 69.58}
    parts = _before_and_after("cifar10", "toy-cnn", paper, lead=30, epochs=epochs, folds=("swa", "dswa"))
    notes = (*_OPEN, "the widths of the toy network are not in the paper")
    return Recipe("SWA Revisited, Table 1", "toy CNN on cifar10", parts, notes)


def table_2(network: Network = "preresnet164", epochs: int = 30) -> Recipe:
    """CIFAR-100: SWA, DSWA and TSWA after an SGD that has not converged."""
    column = ("vgg16", "preresnet164", "wrn-28-10").index(network)
    paper = {
        "SGD": (55.57, 68.00, 75.33),
        "SWA": (65.98, 75.62, 80.59),
        "DSWA": (68.10, 76.64, 81.20),
        "TSWA": (68.54, 76.75, 81.00),
    }
    one = {name: values[column] for name, values in paper.items()}
    parts = _before_and_after("cifar100", network, one, lead=30, epochs=epochs, folds=("swa", "dswa", "tswa"))
    return Recipe("SWA Revisited, Table 2", f"{network} on cifar100", parts, _OPEN)


def figure_1(epochs: int = 50) -> Recipe:
    """A toy CNN that overfits CIFAR-10: SGD to the end, and SWA over the last 5 and 20 epochs."""
    methods = {"SGD": spec("sgd", **_plain(schedule="constant", warmup=0))}
    for last in (5, 20):
        methods[f"SWA, last {last}"] = spec(
            "swa", **_plain(schedule="constant", warmup=0), swa_start=1 - last / epochs, swa_lr=1
        )
    paper = {"SGD": {"top1": 68.0}, "SWA, last 5": {"top1": 67.9}, "SWA, last 20": {"top1": 68.0}}
    part = Part("toy-cnn", _plan("cifar10", "toy-cnn", methods, epochs), rows(methods, paper))
    notes = (*_OPEN, "the epochs are not in the paper, which has its best at the 45th")
    return Recipe("SWA Revisited, Figure 1", "a toy CNN that overfits", (part,), notes)


def figure_2() -> Recipe:
    """PreResNet-164 on CIFAR-10: SGD that has converged, and SWA after the 140th epoch."""
    whole = 225
    own = _plain(lr=0.1)
    methods = {
        "SGD": spec("sgd", **own, **izmailov(1.0, 0.01, swa=False)),
        "SWA": spec("swa", **own, **izmailov(140 / whole, 0.5)),
    }
    paper = {"SGD": {"top1": 89.24}, "SWA": {"top1": 89.17}}
    part = Part("preresnet164", _plan("cifar10", "preresnet164", methods, whole), rows(methods, paper))
    return Recipe("SWA Revisited, Figure 2", "PreResNet-164 on cifar10, converged", (part,), _OPEN)


def figure_3(data: Small = "cifar10", network: Network = "vgg16", epochs: int = 65) -> Recipe:
    """SWA and its samples after an SGD that has converged (160 epochs)."""
    parts = _before_and_after(data, network, {}, lead=160, epochs=epochs, folds=("swa",))
    return Recipe("SWA Revisited, Figure 3", f"{network} on {data}, converged", parts, _OPEN)


def figure_4(data: Small = "cifar10", network: Network = "vgg16", epochs: int = 30) -> Recipe:
    """SWA and its samples after an SGD that has not converged (30 epochs)."""
    parts = _before_and_after(data, network, {}, lead=30, epochs=epochs, folds=("swa",))
    return Recipe("SWA Revisited, Figure 4", f"{network} on {data}, not converged", parts, _OPEN)


def figure_5(
    network: Literal["vgg16", "resnet50", "resnet152", "densenet161"] = "resnet50", epochs: int = 10
) -> Recipe:
    """SWA from pretrained weights on ImageNet: the whole run samples at a constant rate."""
    swa = spec("swa", **_plain(lr=0.001, batch=256, schedule="constant", warmup=0), swa_start=0, swa_lr=1)
    config = VisionConfig(
        data="folder",
        root="imagenet",
        image_size=224,
        stream=True,
        model=network,
        init_from=f"torchvision:{network}",
        branches=1,
        augmentations=("resized-crop+horizontal-flip",),
    )
    part = Part(network, Plan("vision", config, (swa,), (0,), Budget(epochs=epochs)), (Row("SWA", swa.label),))
    notes = (*_OPEN, "images are resized to 224 x 224 once, when they are read")
    return Recipe("SWA Revisited, Figure 5", f"pretrained {network} on ImageNet", (part,), notes)
