"""Lookaround (Zhang et al. 2023), fine-tuned: Tables 3, 4, 9 and 11, Figures 4 and 5 (right)."""

from __future__ import annotations

from typing import Literal

from lookaround.experiment import Budget, Plan
from lookaround.methods import Spec
from lookaround.recipes.base import Part, Recipe, Row, Soups, rows, spec
from lookaround.recipes.lookaround_scratch import OPEN, SEEDS, SGD, SWA, Small, from_scratch, schedule_of
from lookaround.tasks.vision import VisionConfig

_TUNING = ("horizontal-flip", "rand-augment", "auto-augment")
_TABLE_3 = {
    ("resnet50", "cifar10"): {
        "SGDM": (97.55, 0.109),
        "SWA": (97.48, 0.105),
        "Lookahead": (97.65, 0.103),
        "Ours": (97.82, 0.099),
    },
    ("resnet50", "cifar100"): {
        "SGDM": (84.50, 0.692),
        "SWA": (84.81, 0.668),
        "Lookahead": (84.78, 0.676),
        "Ours": (85.20, 0.658),
    },
    ("vit-b-16", "cifar10"): {
        "Adam": (98.34, 0.060),
        "SWA": (98.47, 0.049),
        "Lookahead": (98.51, 0.047),
        "Ours": (98.71, 0.041),
    },
    ("vit-b-16", "cifar100"): {
        "Adam": (91.55, 0.298),
        "SWA": (91.32, 0.304),
        "Lookahead": (91.76, 0.280),
        "Ours": (92.21, 0.267),
    },
}
_TUNED = (
    "the paper searched the learning rate in 0.001, 0.003, 0.01, 0.03 and the weight decay in 1e-4, 5e-5, 1e-5 and does not say "
    "which were best: change lr and weight_decay with lookaround tune",
    "data is a folder of CIFAR's images as files, which are resized to 224 x 224 when they are read",
)


def _tuning(network: str) -> tuple[str, dict[str, object]]:
    """The inner optimizer's name and settings."""
    if network == "vit-b-16":
        return "adam", {"lr": 1e-5, "betas": (0.9, 0.999), "weight_decay": 0.01, "schedule": "cosine", "batch": 64}
    return "sgd", {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine", "batch": 128}


def _tuned(root: str, model: str, methods: tuple[Spec, ...], augmentations: tuple[str, ...] = _TUNING) -> Plan:
    config = VisionConfig(
        data="folder",
        root=root,
        image_size=224,
        stream=True,
        model=model,
        init_from=f"torchvision:{model}",
        branches=len(augmentations),
        augmentations=augmentations,
    )
    return Plan("vision", config, methods, SEEDS, Budget(epochs=50))


def table_3(data: Small = "cifar100", network: Literal["resnet50", "vit-b-16"] = "resnet50") -> Recipe:
    """Fine-tuning from ImageNet's weights at 224 x 224."""
    inner, own = _tuning(network)
    around = {"inner": inner, **own}
    methods = {
        "Adam" if inner == "adam" else "SGDM": spec(inner, **own),
        "SWA": spec("swa", **SWA, **around),
        "Lookahead": spec("lookahead", k=5, alpha=0.5, **around),
        "Ours": spec("lookaround", k=5, **around),
    }
    paper = {name: dict(zip(("top1", "nll"), v, strict=True)) for name, v in _TABLE_3[network, data].items()}
    part = Part(f"{data}-{network}", _tuned(data, network, tuple(methods.values())), rows(methods, paper))
    return Recipe("Lookaround, Table 3", f"{network} on {data}, fine-tuned", (part,), _TUNED)


def figure_4(network: Literal["resnet50", "vit-b-16"] = "resnet50") -> Recipe:
    """Curves of Table 3 on CIFAR-100."""
    recipe = table_3("cifar100", network)
    return Recipe("Lookaround, Figure 4", f"curves of {network} on cifar100", recipe.parts, _TUNED).changed(
        {"eval_train": True}
    )


def table_4(
    network: Literal["resnet50-scratch", "resnet50", "vit-b-16"] = "resnet50", data: Small = "cifar100"
) -> Recipe:
    """SAM, Lookaround, and both."""
    paper: dict[tuple[str, str], dict[str, float]] = {
        ("resnet50-scratch", "cifar10"): {"Lookaround": 96.59, "Lookaround + SAM": 96.38},
        ("resnet50-scratch", "cifar100"): {"SAM": 79.10, "Lookaround": 81.60, "Lookaround + SAM": 79.79},
        ("resnet50", "cifar10"): {"SAM": 97.65, "Lookaround": 97.82, "Lookaround + SAM": 97.88},
        ("resnet50", "cifar100"): {"SAM": 85.97, "Lookaround": 85.20, "Lookaround + SAM": 86.21},
        ("vit-b-16", "cifar10"): {"SAM": 98.51, "Lookaround": 98.71, "Lookaround + SAM": 98.67},
        ("vit-b-16", "cifar100"): {"SAM": 92.39, "Lookaround": 92.21, "Lookaround + SAM": 92.54},
    }
    scratch = network == "resnet50-scratch"
    inner, own = ("sgd", {"batch": 128, **SGD, **schedule_of(data)}) if scratch else _tuning(network)
    around = {"inner": inner, **own}
    methods = {
        "SAM": spec("sam", rho=0.05, **around),
        "Lookaround": spec("lookaround", k=5, **around),
        "Lookaround + SAM": spec("lookaround+sam", k=5, rho=0.05, **around),
    }
    plan = from_scratch(data, "resnet50", methods) if scratch else _tuned(data, network, tuple(methods.values()))
    printed = {name: {"top1": value} for name, value in paper[network, data].items()}
    part = Part(f"{data}-{network}", plan, rows(methods, printed))
    return Recipe(
        "Lookaround, Table 4", f"SAM and Lookaround, {network} on {data}", (part,), OPEN if scratch else _TUNED
    )


_CARS = {
    ("H",): {"SGDM": (86.57, 97.52), "SWA": (87.60, 98.21)},
    ("R",): {"SGDM": (87.30, 98.01), "SWA": (88.00, 98.21)},
    ("A",): {"SGDM": (87.63, 98.05), "SWA": (88.11, 98.15)},
    ("H", "R"): {"Logit Ensemble": (89.24, 98.44), "Lookaround": (89.35, 98.47)},
    ("H", "R", "A"): {
        "Logit Ensemble": (90.19, 98.67),
        "Lookaround": (90.76, 98.78),
        "Logit Ensemble+SWA": (90.39, 98.80),
        "Lookaround+SWA": (91.04, 98.86),
    },
}


def table_9() -> Recipe:
    """Stanford Cars with a ResNet-18: augmentations, ensembles, SWA and Lookaround at training budgets of 1, 2 and 3."""
    letters = {"H": "horizontal-flip", "R": "rand-augment", "A": "auto-augment"}
    own: dict[str, object] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine", "batch": 128}
    known = {
        "SGDM": spec("sgd", **own),
        "SWA": spec("swa", **SWA, **own),
        "Logit Ensemble": spec("logit-ensemble", **own),
        "Lookaround": spec("lookaround", k=5, **own),
        "Logit Ensemble+SWA": spec("logit-ensemble+swa", **SWA, **own),
        "Lookaround+SWA": spec("lookaround+swa", k=5, **SWA, **own),
    }
    parts = []
    for letter, printed in _CARS.items():
        methods = {name: known[name] for name in printed}
        plan = _tuned("stanford-cars", "resnet18", tuple(methods.values()), tuple(letters[one] for one in letter))
        numbers = {name: dict(zip(("top1", "top5"), values, strict=True)) for name, values in printed.items()}
        parts.append(Part("+".join(letter), plan, rows(methods, numbers)))
    notes = ("learning rate, weight decay and epochs are not in the paper; here they are those of its fine-tuning",)
    return Recipe("Lookaround, Table 9", "ResNet-18 on Stanford Cars, fine-tuned", tuple(parts), notes)


_SOUPS = {
    "Uniform Soups": (82.93, 97.44),
    "Uniform Soups, update BN": (84.53, 98.10),
    "Uniform Soups⁺": (84.60, 97.81),
    "Uniform Soups⁺, update BN": (85.57, 98.04),
    "Greedy Soups": (85.52, 98.02),
    "Greedy Soups, update BN": (86.09, 98.11),
}


def table_11() -> Recipe:
    """Soups of 18 networks against Lookaround: ResNet-50 on CIFAR-100, fine-tuned."""
    own: dict[str, object] = {"momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine", "batch": 128}
    rates = tuple(spec("sgd", lr=rate, **own) for rate in (0.01, 0.003, 0.001))
    parts = []
    for name in _TUNING:
        for smoothing in (0.0, 0.1):
            plan = _tuned("cifar100", "resnet50", rates, (name,))
            part = Part(f"{name}-smoothing-{smoothing:g}", plan, tuple(Row("an ingredient", s.label) for s in rates))
            one = {"label_smoothing": smoothing, "seeds": (0,), "hold_out": 0.02}
            parts.append(Recipe("", "", (part,)).changed(one).parts[0])
    around = spec("lookaround", k=5, lr=0.01, **own)
    printed = {"top1": 85.20, "top5": 97.15}
    numbers = {name: dict(zip(("top1", "top5"), values, strict=True)) for name, values in _SOUPS.items()}
    soups = Soups(tuple(part.name for part in parts), "lookaround", 10, numbers)
    parts.append(
        Part("lookaround", _tuned("cifar100", "resnet50", (around,)), (Row("Lookaround (M=3)", around.label, printed),))
    )
    notes = (
        "ingredients are chosen on a fiftieth of the training images, which none of them trains on; the paper does not say on which",
        "norm statistics are estimated anew on minibatches of Lookaround's three copies",
        *_TUNED,
    )
    return Recipe("Lookaround, Table 11", "model soups and Lookaround", tuple(parts), notes, soups)


def figure_5_pretrained() -> Recipe:
    """Steps k of 5 and of an epoch, fine-tuned."""
    _, own = _tuning("resnet50")
    methods = {f"k = {k}": spec("lookaround", k=k, **own) for k in (5, 391)}
    part = Part("pretrained", _tuned("cifar100", "resnet50", tuple(methods.values())), rows(methods, {}))
    return Recipe("Lookaround, Figure 5 (right)", "small and large k, fine-tuned", (part,), _TUNED)
