"""Lookaround (Zhang et al. 2023), from scratch: Tables 1, 2, 5-7 and 10, Figures 3, 5 (left) and 6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lookaround.experiment import Budget, Plan
from lookaround.methods import Spec
from lookaround.recipes.base import Part, Recipe, Row, rows, spec
from lookaround.tasks.vision import VisionConfig

Small = Literal["cifar10", "cifar100"]
_THREE = ("horizontal-flip", "vertical-flip", "rand-augment")
# SWA and SWAD have settings of their papers; SWA's constant rate is half the peak, as there (0.05 of 0.1).
SWA = {"swa_start": 0.75, "swa_lr": 0.5}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
SEEDS = (0, 1, 2)
OPEN = (
    "weight decay of training from scratch, SWA's and SWAD's settings and the number of seeds are not in the paper",
    "the authors' code keeps the best test epoch; here the last one counts",
)


def schedule_of(data: Small) -> dict[str, object]:
    if data == "cifar10":
        return {"schedule": "cosine", "warmup": 1}
    return {"schedule": "multi-step", "milestones": (0.3, 0.6, 0.8), "gamma": 0.2, "warmup": 1}


def _augmented(names: tuple[str, ...], data: Small) -> tuple[str, ...]:
    """CIFAR-100's copies are all rotated, too (Appendix C.1.1)."""
    return tuple(f"{name}+rotation" for name in names) if data == "cifar100" else names


def from_scratch(data: Small, model: str, methods: Mapping[str, Spec], augmentations: tuple[str, ...] = _THREE) -> Plan:
    """These methods on a small data set, from drawn weights, as the paper trains them."""
    config = VisionConfig(
        data=data,
        root="data",
        model=model,
        branches=len(augmentations),
        augmentations=_augmented(augmentations, data),
        crop_padding=4,
    )
    return Plan("vision", config, tuple(methods.values()), SEEDS, Budget(epochs=200))


def _usual(data: Small) -> dict[str, Spec]:
    own = {"batch": 128, **SGD, **schedule_of(data)}
    return {
        "SGDM": spec("sgd", **own),
        "SWA": spec("swa", **SWA, **own),
        "SWAD": spec("swad", **own),
        "Lookahead": spec("lookahead", k=5, alpha=0.5, **own),
        "Ours": spec("lookaround", k=5, **own),
    }


_NETWORKS = ("vgg19-bn", "resnet50", "resnet101", "resnet152", "resnext50")
_TABLE_1 = {
    "cifar10": {
        "SGDM": ((93.92, 0.26), (95.96, 0.16), (96.16, 0.16), (96.28, 0.16), (95.72, 0.17)),
        "SWA": ((94.89, 0.21), (96.42, 0.14), (96.34, 0.14), (96.82, 0.13), (96.09, 0.16)),
        "SWAD": ((93.23, 0.29), (95.39, 0.19), (94.49, 0.22), (95.00, 0.20), (93.89, 0.26)),
        "Lookahead": ((94.72, 0.23), (96.38, 0.16), (96.61, 0.15), (96.46, 0.15), (96.47, 0.15)),
        "Ours": ((94.44, 0.25), (96.59, 0.14), (96.73, 0.14), (97.02, 0.14), (96.70, 0.13)),
    },
    "cifar100": {
        "SGDM": ((73.84, 91.09), (79.61, 95.21), (79.91, 95.54), (80.16, 95.49), (79.10, 94.86)),
        "SWA": ((73.62, 90.89), (80.17, 95.56), (80.53, 95.39), (80.86, 95.43), (79.14, 94.96)),
        "SWAD": ((73.37, 89.93), (80.19, 95.46), (79.92, 95.09), (80.00, 95.36), (79.27, 95.17)),
        "Lookahead": ((74.02, 90.68), (80.06, 95.24), (81.14, 95.84), (81.36, 95.77), (80.12, 95.26)),
        "Ours": ((74.29, 91.15), (81.60, 95.99), (81.97, 96.15), (82.22, 96.40), (81.14, 96.12)),
    },
}


def table_1(
    data: Small = "cifar100",
    network: Literal["vgg19-bn", "resnet50", "resnet101", "resnet152", "resnext50"] = "resnet50",
) -> Recipe:
    """CIFAR from scratch: five methods on five networks."""
    second = "nll" if data == "cifar10" else "top5"
    column = _NETWORKS.index(network)
    paper = {name: dict(zip(("top1", second), all_[column], strict=True)) for name, all_ in _TABLE_1[data].items()}
    methods = _usual(data)
    part = Part(f"{data}-{network}", from_scratch(data, network, methods), rows(methods, paper))
    return Recipe("Lookaround, Table 1", f"{network} on {data} from scratch", (part,), OPEN)


def figure_3(network: Literal["vgg19-bn", "resnet50", "resnet101", "resnet152", "resnext50"] = "resnet50") -> Recipe:
    """Curves of Table 1 on CIFAR-100: training loss and accuracy; look at curves.png and metrics.jsonl."""
    recipe = table_1("cifar100", network)
    return Recipe("Lookaround, Figure 3", f"curves of {network} on cifar100", recipe.parts, OPEN).changed(
        {"eval_train": True}
    )


_IMAGENET = {
    "SGDM": {"top1": 75.97, "top5": 92.89},
    "SWA": {"top1": 76.78, "top5": 93.18},
    "Lookahead": {"top1": 76.52, "top5": 93.11},
    "Lookaround": {"top1": 77.32, "top5": 93.29},
}


def table_2() -> Recipe:
    """ImageNet from scratch with a ResNet-50."""
    own = {"batch": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "multi-step", "warmup": 0}
    own |= {"milestones": (0.3, 0.6, 0.9), "gamma": 0.1}
    methods = {
        "SGDM": spec("sgd", **own),
        "SWA": spec("swa", **SWA, **own),
        "Lookahead": spec("lookahead", k=5, alpha=0.5, **own),
        "Lookaround": spec("lookaround", k=5, **own),
    }
    config = VisionConfig(
        data="folder",
        root="imagenet",
        image_size=224,
        stream=True,
        model="resnet50",
        augmentations=tuple(f"resized-crop+{name}+rotation" for name in _THREE),
    )
    part = Part(
        "imagenet-resnet50",
        Plan("vision", config, tuple(methods.values()), (0,), Budget(epochs=100)),
        rows(methods, _IMAGENET),
    )
    notes = (
        *OPEN,
        "images are resized to 224 x 224 once, when they are read; the paper crops them from the original size",
    )
    return Recipe("Lookaround, Table 2", "ResNet-50 on ImageNet from scratch", (part,), notes)


def table_5(network: Literal["resnet50", "resnet101", "resnet152"] = "resnet50") -> Recipe:
    """Ensembles against Lookaround, and both together, on CIFAR-100."""
    column = ("resnet50", "resnet101", "resnet152").index(network)
    paper = {
        "Logit Ensemble": (81.16, 81.92, 81.89),
        "SnapShot Ensemble": (79.88, 80.63, 80.23),
        "Ours (Lookaround)": (81.60, 81.97, 82.22),
        "Ours + Logit Ensemble": (83.43, 83.35, 83.53),
    }
    own = {"batch": 128, **SGD, **schedule_of("cifar100")}
    methods = {
        "Logit Ensemble": spec("logit-ensemble", **own),
        "SnapShot Ensemble": spec("snapshot-ensemble", cycles=4, batch=128, **SGD, warmup=1),
        "Ours (Lookaround)": spec("lookaround", k=5, **own),
        "Ours + Logit Ensemble": spec("lookaround+logit-ensemble", k=5, **own),
    }
    printed = {name: {"top1": values[column]} for name, values in paper.items()}
    part = Part(network, from_scratch("cifar100", network, methods), rows(methods, printed))
    return Recipe("Lookaround, Table 5", f"ensembles of {network} on cifar100", (part,), OPEN)


def table_6(data: Small = "cifar100") -> Recipe:
    """Ablation: augmentations that differ (DA) and weight averaging (WA), with a ResNet-50."""
    paper = {
        "cifar10": {"neither": 95.84, "DA": 95.96, "WA": 95.79, "DA and WA": 96.59},
        "cifar100": {"neither": 78.81, "DA": 79.61, "WA": 79.49, "DA and WA": 81.60},
    }[data]
    own = {"batch": 128, **SGD, **schedule_of(data)}
    sgd, around = spec("sgd", **own), spec("lookaround", k=5, **own)
    parts = []
    for name in _THREE:
        alike = from_scratch(data, "resnet50", {"neither": sgd, "WA": around}, (name,) * 3)
        each = rows({"neither": sgd, "WA": around}, {row: {"top1": paper[row]} for row in ("neither", "WA")})
        parts.append(Part(name, alike, each))
    both = {"DA": sgd, "DA and WA": around}
    different = rows(both, {row: {"top1": paper[row]} for row in both})
    parts.append(Part("all-three", from_scratch(data, "resnet50", both), different))
    notes = (
        *OPEN,
        "of the rows without DA the paper prints the best of the three augmentations; here each has a part of its own",
    )
    return Recipe("Lookaround, Table 6", f"ablation of ResNet-50 on {data}", tuple(parts), notes)


_SIX = ("vertical-flip", "horizontal-flip", "rand-augment", "auto-augment", "perspective", "equalize")


def table_7() -> Recipe:
    """One to six augmentations and branches, with a ResNet-50 on CIFAR-100."""
    top1, top5 = (78.20, 80.82, 81.60, 81.19, 81.74, 82.02), (94.50, 95.19, 95.99, 95.65, 95.85, 96.02)
    around = spec("lookaround", k=5, batch=128, **SGD, **schedule_of("cifar100"))
    parts = tuple(
        Part(
            f"branches-{d}",
            from_scratch("cifar100", "resnet50", {"": around}, _SIX[:d]),
            (Row(f"{d} augmentations", around.label, {"top1": top1[d - 1], "top5": top5[d - 1]}),),
        )
        for d in range(1, 7)
    )
    notes = (
        *OPEN,
        "which augmentations the first d are is not said; here they come in the order in which Appendix C.6 lists them",
    )
    return Recipe("Lookaround, Table 7", "number of augmentations", parts, notes)


def table_10(data: Small = "cifar100") -> Recipe:
    """DART against Lookaround with a ResNet-18."""
    paper = {"cifar10": {"Dart": 97.14, "Lookaround": 97.22}, "cifar100": {"Dart": 82.89, "Lookaround": 83.16}}[data]
    own = {"batch": 128, **SGD, **schedule_of(data)}
    methods = {"Dart": spec("dart", **own), "Lookaround": spec("lookaround", k=5, **own)}
    printed = {name: {"top1": value} for name, value in paper.items()}
    part = Part(data, from_scratch(data, "resnet18", methods), rows(methods, printed))
    notes = (*OPEN, "DART's numbers are from its own paper, whose augmentations and epochs were others")
    return Recipe("Lookaround, Table 10", f"DART and Lookaround on {data}", (part,), notes)


def figure_5() -> Recipe:
    """Steps k between two averages, from 1 to an epoch's."""
    own = {"batch": 128, **SGD, **schedule_of("cifar100")}
    methods = {f"k = {k}": spec("lookaround", k=k, **own) for k in (1, 5, 10, 50, 100, 391)}
    part = Part("scratch", from_scratch("cifar100", "resnet50", methods), rows(methods, {}))
    notes = (*OPEN, "the text names 5 and 391 alone; the others of the picture are guessed")
    return Recipe("Lookaround, Figure 5 (left)", "steps k, from scratch", (part,), notes)


def figure_6(rate: float = 0.1) -> Recipe:
    """Two branches that go on from their mean, step by step, at several learning rates."""
    around = spec("lookaround", k=5, **{**SGD, "lr": rate}, batch=128, **schedule_of("cifar100"))
    plan = from_scratch("cifar100", "resnet50", {"": around}, ("horizontal-flip", "rand-augment"))
    part = Part("mean-net", plan, (Row("Mean-net", around.label),))
    then = tuple(
        f"trajectory {{run}} --rounds 1 --k 160 --lr {going:g} --out {{out}}/rate-{going:g}"
        for going in (rate, rate / 5, rate / 25)
    )
    notes = (*OPEN, "the learning rates of the picture are not in the text; here they are those of the run's schedule")
    return Recipe("Lookaround, Figure 6", "sub-models inside a round", (part,), notes, then=then)
