"""Methods by name. A new one is a function from `Setting` to `Method`, and a line here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from lookaround.experiment.methods.averages import DenseWindow, ema
from lookaround.experiment.methods.base import Method, Setting
from lookaround.experiment.methods.joined import AveragedMembers, JoinedEnsemble
from lookaround.experiment.methods.members import GreedySoup, MemberEnsemble, UniformSoup
from lookaround.experiment.methods.snapshots import Snapshots
from lookaround.experiment.methods.swa import LateSWA
from lookaround.experiment.methods.trajectory import AveragedTrajectory, Branches, Trajectory
from lookaround.optim import SAM, Lookahead, Lookaround


def sgd(setting: Setting) -> torch.optim.SGD:
    """SGD with momentum and weight decay as configured: the baseline, and everyone's inner optimizer."""
    config = setting.config
    return torch.optim.SGD(
        setting.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def adamw(setting: Setting) -> torch.optim.AdamW:
    """AdamW with its own learning rate and decoupled weight decay."""
    config = setting.config
    return torch.optim.AdamW(setting.model.parameters(), lr=config.adamw_lr, weight_decay=config.adamw_weight_decay)


def sam(setting: Setting) -> SAM:
    """Sharpness-aware minimisation around SGD; each of its steps costs two gradient evaluations."""
    return SAM(sgd(setting), rho=setting.config.rho, adaptive=setting.config.adaptive)


def lookahead(setting: Setting, inner: Optimizer) -> Method:
    """Lookahead around ``inner``, with the configured k and α."""
    config = setting.config
    return AveragedTrajectory(setting, Lookahead(inner, k=config.k, alpha=config.alpha, inner_state=config.inner_state))


def lookaround(setting: Setting, inner: Optimizer, *, k: int | None = None, start: int = 0) -> Method:
    """Lookaround around ``inner``, with the configured branches, k and α; ``start`` passes come before the branches part."""
    config = setting.config
    optimizer = Lookaround(
        inner,
        branches=config.branches,
        k=k or config.k,
        alpha=config.lookaround_alpha,
        inner_state=config.inner_state,
        # Without the model all branches write the same running statistics, as they come.
        model=None if config.norm_stats == "copy" else setting.model,
        start=start,
    )
    return Branches(setting, optimizer)


def dart(setting: Setting) -> Method:
    """DART (Jain et al. 2023): Lookaround that begins late and averages rarely."""
    config, per_epoch = setting.config, setting.batches.per_epoch
    start = round(config.dart_start * config.epochs * per_epoch)
    return lookaround(setting, sgd(setting), k=config.dart_k or per_epoch, start=start)


def swa(setting: Setting, folds: int) -> Method:
    """SGD that ends with SWA in so many folds."""
    return LateSWA(setting, Trajectory(setting, sgd(setting)), folds)


def ensemble(setting: Setting) -> MemberEnsemble:
    """Independent members, each with its own SGD."""
    return MemberEnsemble(setting, sgd(setting))


METHODS: dict[str, Callable[[Setting], Method]] = {
    "sgd": lambda setting: Trajectory(setting, sgd(setting)),
    "adamw": lambda setting: Trajectory(setting, adamw(setting)),
    "lookahead": lambda setting: lookahead(setting, sgd(setting)),
    "lookaround": lambda setting: lookaround(setting, sgd(setting)),
    "sam": lambda setting: Trajectory(setting, sam(setting)),
    "lookahead+sam": lambda setting: lookahead(setting, sam(setting)),
    "lookaround+sam": lambda setting: lookaround(setting, sam(setting)),
    "ema": lambda setting: ema(setting, sgd(setting)),
    "swa": lambda setting: swa(setting, folds=1),
    "dswa": lambda setting: swa(setting, folds=2),
    "tswa": lambda setting: swa(setting, folds=3),
    "swad": lambda setting: DenseWindow(setting, sgd(setting)),
    "dart": dart,
    "lookahead+swa": lambda setting: LateSWA(setting, lookahead(setting, sgd(setting)), folds=1),
    "lookaround+swa": lambda setting: LateSWA(setting, lookaround(setting, sgd(setting)), folds=1),
    "logit-ensemble": ensemble,
    "logit-ensemble+swa": lambda setting: AveragedMembers(setting, sgd(setting)),
    "lookaround+logit-ensemble": lambda setting: JoinedEnsemble(
        setting, lambda own: lookaround(own, sgd(own)), ensemble
    ),
    "snapshot-ensemble": lambda setting: Snapshots(setting, sgd(setting)),
    "uniform-soup": lambda setting: UniformSoup(setting, sgd(setting)),
    "greedy-soup": lambda setting: GreedySoup(setting, sgd(setting)),
}
