"""Statistics that are re-estimated: in the precision the network is trained in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lookaround.averaging import update_norm_stats
from lookaround.methods.norms import reestimate, reestimated


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def precisions(setup: Any, action: Any) -> set[torch.dtype]:
    """Of what the norm layers see meanwhile."""
    seen = set()
    layers = [layer for layer in setup.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype)) for layer in layers]
    action(setup)
    for hook in hooks:
        hook.remove()
    return seen


def within(setup: Any) -> None:
    with reestimated(setup):
        pass


@pytest.mark.parametrize(("amp", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize("action", [reestimate, within])
def test_the_pass_runs_in_the_precision_of_training(start: Any, action: Any, amp: bool, expected: torch.dtype) -> None:
    setup = start("ema:norm_stats=reestimate", amp=amp).method.setup
    assert precisions(setup, action) == {expected}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("amp", [False, True])
def test_the_statistics_are_those_of_the_training_minibatches(start: Any, amp: bool) -> None:
    setup = start("ema:norm_stats=reestimate", amp=amp).method.setup
    batches, plain = setup.batches, copy.deepcopy(setup.model)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        update_norm_stats(plain, [batches.copy(m, j).inputs for m, j in enumerate((0, 1, 2, 0))])
    reestimate(setup)
    found, expected = statistics(setup.model), statistics(plain)
    assert found
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("choice", ["average", "copy"])
def test_nothing_is_re_estimated_unless_it_is_asked_for(start: Any, choice: str) -> None:
    setup = start(f"ema:norm_stats={choice}", amp=True).method.setup
    assert precisions(setup, reestimate) == set()
