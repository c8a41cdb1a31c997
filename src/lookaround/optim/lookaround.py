"""Lookaround: k steps around, one step average (Zhang et al., NeurIPS 2023)."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from lookaround.optim import momentum
from lookaround.optim.average import Rows
from lookaround.optim.checks import Alpha, Period, check_count
from lookaround.optim.healing import offer
from lookaround.optim.outer import MakeOuter
from lookaround.optim.replicated import Replicas
from lookaround.optim.spread import Spread

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torchft import Manager


class Lookaround(Spread):
    r"""Train d branches from a common point, each on its own augmentation, and every k steps replace them by their average.

    .. math:: \phi_t = \phi_{t-1} + \alpha \Big(\frac{1}{d} \sum_{j=1}^{d} \theta_{t,j,k} - \phi_{t-1}\Big), \qquad
              \theta_{t+1,j,0} = \phi_t

    The branches take turns in the model's own parameters, which never change storage. ``for branch in optimizer.around()`` gives
    each minibatch to every branch, the paper's loop; in a loop that knows nothing of branches every `step` moves on to the next one.
    The average comes by itself after the k-th step of the last branch.

    Args:
        inner: any `torch.optim.Optimizer`, with any parameter groups.
        branches: the number of branches, d, at least 1: the number of augmentations in the paper.
        k: synchronization period: inner steps of every branch between two averages, at least 1, or a function of the round number
            (from 0): the paper finds a large k better early in training and a small one late.
        alpha: weight of the mean of the branches in an average, in [0, 1]. 1 is the paper's; below 1 the slow weights φ are kept (one
            more copy of the weights) and the average goes only part of the way. ``branches=1`` is `Lookahead`, bit for bit. A function
            of the round number (from 0) is evaluated at the round's start.
        inner_state: what happens to the inner optimizer's momentum at an average (see `Lookahead`). Each branch has its own; with
            ``"maintain"`` it keeps it (the paper's setting), ``"interpolate"`` gives all branches m_φ + α (mean of theirs - m_φ),
            ``"reset"`` zero. Adam's second moments and step counts stay each branch's own in every mode.
        model: the module that is trained. With it each branch has its own buffers (batch-norm running statistics), averaged like the
            weights at the average step (integers copied) and part of `averaged`. Without it buffers are left alone: all branches
            update one common set in turn, so batch-norm statistics are a mixture over the branches and their augmentations,
            which no single set of weights has produced (the authors' code does this).
            In a loop without `around` the branches of the first round fork at the first step, after its forward pass has updated the
            statistics once.
        offload: keep idle branches in host memory, pinned and copied asynchronously from and to a CUDA device.
        start: passes over the branches before the first round, during which they share one set of weights that takes d steps a pass
            and so consumes every augmentation. With a large k this is DART, which branches off half-way through training.
        outer: an outer optimizer in the place of α (see `Lookahead`): d branches with Nesterov momentum are DiLoCo.
        mesh: a `DeviceMesh` with a dimension "branch": a process holds the branches of its row (docs/scaling.md). Without it all are here.
        wire: how weights travel along it: ``"exact"``, or in fewer bits, as displacements whose errors are made up for the next time.
        time_limit: how long an average waits for a process; then `lookaround.distributed.LostRankError` names it. With ``replicas``
            how long it may take until enough of them are there; then `lookaround.distributed.LostReplicasError`.
        overlap: j, passes over the branches by which an average is taken in after its round's end, less than k. 0 takes it in there. With
            more it is under way meanwhile, in a thread, while the next round has begun: no process waits for the others at a round's end.
        replicas: a torchft ``Manager`` (`lookaround.distributed.join_replicas`): a replica group holds one branch, may die and come back.
            The others go on: their mean is divided by who is there, and the branches of who is not come to them in turn. Every step
            stands in a loop over `around` then, and `averaged` comes where a round has just ended. For as long as an average lasts what
            it writes to is there twice.

    With ``overlap=j`` branch i keeps :math:`s_i = \theta_i` at a round's end and goes on from there. j passes later (at the next round's
    end, if that comes earlier, since k may change) the mean of all s_i has come, and

    .. math:: \phi \leftarrow \phi + \alpha \Big(\frac{1}{d} \sum_i s_i - \phi\Big), \qquad \theta_i \leftarrow \theta_i + (\phi - s_i),

    or the outer optimizer's step on φ - mean: each branch is at the new common start, with the way on top that it has come since. α
    and the outer optimizer's settings are those of then. ``inner_state="reset"`` resets momentum then; ``"interpolate"`` is refused,
    and so is a wrapper inside that has slow weights of its own. Buffers stay each branch's own, and their mean is taken where it is
    looked at: for running statistics, which go a part of the way to every minibatch's, that comes to the same. A pass counts even if
    every step in it was skipped. `averaged` waits for what is under way and shows what the average step would give had it come,
    φ + α mean (θ_i - s_i) with the new φ; right after a round's end, φ itself. `average` takes in what is under way and ends the
    round with an average that is waited for; `restart` drops it. A branch that was not finite at the round's end is φ when the
    average has come. Memory: one more copy of each branch's weights, and one set in the averaging dtype. A state dict waits for
    what is under way and holds it, so a run goes on from it without sending anything again.

    The memory is d times weights and inner state (and φ where α < 1), plus the activations of one branch. A branch whose weights are
    not finite at an average is left out of it with a RuntimeWarning, and restarts from the average with another branch's inner
    state; to know it, an average waits for the device once (`Lookahead`, which has no other branch, does not ask).

    Raises:
        TypeError: ``inner`` is no optimizer, ``model`` no module, or a setting is of another type.
        ValueError: k < 1, branches < 1, start < 0, α outside [0, 1], an unknown ``inner_state``; at an average, if no branch has
            finite weights.

    Example:
        >>> from lookaround import Lookaround
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
        >>> optimizer = Lookaround(torch.optim.SGD([weight], lr=1.0), branches=2, k=1)
        >>> for branch in optimizer.around():
        ...     optimizer.zero_grad()
        ...     (weight * [-1.0, -3.0][branch]).sum().backward()
        ...     optimizer.step()
        >>> weight.data  # one branch went to 1, the other to 3
        tensor([2.])

    Source: Algorithm 1 and equations 1 and 2; ``maintain`` and k = 5 are the authors' settings; DART: Jain et al., CVPR 2023. Overlap:
    CoCoD-SGD, Shen et al., IJCAI 2019 (arXiv 1906.12043), where it takes a whole round; the rule for part of one, at α = 1, is also
    LOSCAR-SGD's (arXiv 2605.20866).
    """

    name: ClassVar[str] = "lookaround"
    _careful: ClassVar[bool] = True

    def __init__(
        self,
        inner: Optimizer,
        branches: int = 3,
        k: Period = 5,
        *,
        alpha: Alpha = 1.0,
        inner_state: momentum.Mode = "maintain",
        model: nn.Module | None = None,
        offload: bool = False,
        start: int = 0,
        outer: MakeOuter | None = None,
        mesh: "DeviceMesh | None" = None,
        wire: Literal["exact", "bfloat16", "int8"] = "exact",
        time_limit: timedelta = timedelta(minutes=10),
        overlap: int = 0,
        replicas: "Manager | None" = None,
    ) -> None:
        if outer is not None and alpha != 1:
            raise ValueError(f"either outer or alpha={alpha!r} moves the slow weights: leave one of them out")
        d, apart = check_count("branches", branches), check_count("overlap", overlap, least=0) > 0
        groups = _replicas(replicas, d, time_limit, mesh=mesh, wire=wire, start=start, overlap=overlap)
        rows = _rows(mesh, d, wire, time_limit, start, apart) if groups is None else None
        super().__init__(
            inner, d, k, alpha, inner_state, model, offload, start, outer, rows, overlap=overlap, replicas=groups
        )
        if groups is not None:
            offer(self, groups)


def _rows(
    mesh: "DeviceMesh | None", branches: int, wire: Any, time_limit: timedelta, start: int, apart: bool
) -> Rows | None:
    """The rows of processes of a mesh; nothing of them is loaded without one."""
    if mesh is None:
        if wire != "exact":
            raise ValueError(
                f"wire={wire!r} is how branches on several processes are averaged: give their mesh=, or leave it out"
            )
        return None
    if start:
        raise ValueError(
            f"start={start}: passes in which all branches share one set of weights are not for branches over processes: "
            "train that part without a mesh, and go on from its checkpoint with one"
        )
    from lookaround.distributed import Rows

    return Rows(mesh, branches, wire=wire, time_limit=time_limit, apart=apart)


def _replicas(manager: Any, branches: int, time_limit: timedelta, **others: Any) -> Replicas | None:
    """The replica groups of a manager; nothing of them is loaded without one. No other setting of processes goes with them."""
    if manager is None:
        return None
    for setting, value in others.items():
        if value not in (None, 0, "exact"):
            raise ValueError(f"{setting}={value!r} and replicas do not go together: leave one of them out")
    from lookaround.distributed import Replicas

    return Replicas(manager, branches, time_limit=time_limit)
