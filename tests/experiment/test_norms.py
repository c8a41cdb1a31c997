"""Statistics that are re-estimated: in the precision the network is trained in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lookaround.averaging import update_norm_stats
from lookaround.experiment.methods.norms import reestimate, reestimated


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def precisions(setting: Any, action: Any) -> set[torch.dtype]:
    """Of what the norm layers see meanwhile."""
    seen = set()
    layers = [layer for layer in setting.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype)) for layer in layers]
    action(setting)
    for hook in hooks:
        hook.remove()
    return seen


def within(setting: Any) -> None:
    with reestimated(setting):
        pass


@pytest.mark.parametrize(("amp", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("action", [reestimate, within])
def test_the_pass_runs_in_the_precision_of_training(start: Any, action: Any, amp: bool, expected: torch.dtype) -> None:
    setting = start("sgd", amp=amp, norm_stats="reestimate").method.setting
    assert precisions(setting, action) == {expected}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("amp", [False, True])
def test_the_statistics_are_those_of_the_training_minibatches(start: Any, amp: bool) -> None:
    setting = start("sgd", amp=amp, norm_stats="reestimate").method.setting
    batches, plain = setting.batches, copy.deepcopy(setting.model)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        update_norm_stats(plain, [m.copy(j) for m, j in zip(batches.epoch(0), (0, 1, 2, 0), strict=True)])
    reestimate(setting)
    found, expected = statistics(setting.model), statistics(plain)
    assert found
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("choice", ["average", "copy"])
def test_nothing_is_re_estimated_unless_it_is_asked_for(start: Any, choice: str) -> None:
    setting = start("sgd", amp=True, norm_stats=choice).method.setting
    assert precisions(setting, reestimate) == set()
