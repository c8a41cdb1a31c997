"""Muon for whole networks, against torch's own on matrices and torch's AdamW on the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lookaround.methods.muon import Muon, orthogonalized


def stepped(model, optimizers, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model.zero_grad()
        loss = model(torch.randn(8, 5, generator=generator)).square().sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return model


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_follow_torchs_muon_and_the_rest_follows_adamw(nesterov):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    other = copy.deepcopy(model)
    same = {"lr": 0.02, "weight_decay": 0.1}
    found = stepped(model, [Muon(model.parameters(), nesterov=nesterov, **same)])
    matrices = [p for p in other.parameters() if p.ndim == 2]
    vectors = [p for p in other.parameters() if p.ndim < 2]
    theirs = torch.optim.Muon(matrices, nesterov=nesterov, adjust_lr_fn="match_rms_adamw", **same)
    expected = stepped(other, [theirs, torch.optim.AdamW(vectors, betas=(0.9, 0.95), **same)])
    for mine, wanted in zip(found.parameters(), expected.parameters(), strict=True):
        # The iteration is in bfloat16, whose rounding depends on the order of operations: a step of 0.02 · 0.2 · √7 is 0.01.
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6 if mine.ndim < 2 else 4e-4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_singular_values_end_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    values = torch.linalg.svdvals(orthogonalized(matrix, 5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_convolutions_are_matrices_of_their_filters():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, bias=False)
    flat = nn.Parameter(layer.weight.detach().reshape(4, 27).clone())
    layer.weight.grad = torch.randn_like(layer.weight)
    flat.grad = layer.weight.grad.reshape(4, 27).clone()
    for parameter in (layer.weight, flat):
        Muon([parameter], lr=0.1).step()
    assert torch.equal(layer.weight.reshape(4, 27), flat)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"lr": -1}, "lr must be at least 0"), ({"momentum": 1.0}, "must lie in"), ({"betas": (0.9,)}, "two betas")],
)
def test_numbers_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Muon([nn.Parameter(torch.zeros(2))], **changes)
