"""A branch's buffers: its own with a model, averaged or copied; common and left alone without one."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD

from conformance.table import Net, batch, momentum, same
from lookaround import Lookahead, Lookaround


def sgd(params, lr=1.0, **settings):
    return SGD(params, lr=lr, **settings)


def step_on_batch(optimizer, model, step, j):
    optimizer.zero_grad()
    model(batch(step, j)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_each_branch_has_running_statistics_of_its_own_and_they_are_averaged(alpha):
    model, branches, k = Net(), 3, 2
    optimizer = Lookaround(momentum(list(model.parameters())), branches, k, alpha=alpha, model=model)
    apart = [copy.deepcopy(model) for _ in range(branches)]
    inner = [momentum(list(m.parameters())) for m in apart]
    slow = {n: b.clone() for n, b in model.state_dict().items()}
    for step in range(3 * k):
        for j in optimizer.around():
            step_on_batch(optimizer, model, step, j)
            step_on_batch(inner[j], apart[j], step, j)
        if step % k == k - 1:
            states = [m.state_dict() for m in apart]
            for name, phi in slow.items():
                if phi.is_floating_point():
                    slow[name] = phi + alpha * (sum(s[name] for s in states) / branches - phi)
                else:
                    slow[name] = states[-1][name].clone()
            for m in apart:
                m.load_state_dict(slow)
            torch.testing.assert_close(model.state_dict(), slow)
    assert int(model.body[1].num_batches_tracked) == 3 * k


def test_without_a_model_buffers_are_common_and_untouched():
    model, plain = Net(), Net()
    optimizer = Lookaround(momentum(list(model.parameters())), 2, k=2)
    forward = []
    for step in range(4):
        for j in optimizer.around():
            plain.load_state_dict({**plain.state_dict(), **{n: p.detach() for n, p in model.named_parameters()}})
            plain(batch(step, j))
            step_on_batch(optimizer, model, step, j)
            forward.append(same(dict(model.named_buffers()), dict(plain.named_buffers())))
    assert all(forward)
    assert int(model.body[1].num_batches_tracked) == 8


def test_buffers_that_are_infinite_by_design_do_not_count_against_a_branch():
    """A causal mask of -inf is the same in every branch: it stays as it is."""
    model = Net()
    mask = torch.full((3, 3), float("-inf")).triu(1)
    model.register_buffer("mask", mask.clone())
    optimizer = Lookaround(sgd(model.parameters(), lr=0.1), 2, k=1, alpha=0.5, model=model)
    for step in range(3):
        for j in optimizer.around():
            step_on_batch(optimizer, model, step, j)
    with optimizer.averaged():
        assert torch.equal(model.mask, mask)
    assert torch.equal(model.mask, mask)


def test_a_buffer_shared_by_two_modules_is_averaged_once():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(()))
    model.first, model.second = nn.Module(), nn.Module()
    model.first.register_buffer("running_total", torch.zeros(()))
    model.second.register_buffer("running_total", model.first.running_total)
    optimizer = Lookaround(sgd([model.weight]), 2, k=2, model=model)
    for _ in range(2):
        for j in optimizer.around():
            model.weight.grad = torch.zeros(())
            model.first.running_total += [1.0, 4.0][j]
            optimizer.step()
    assert model.first.running_total is model.second.running_total
    assert float(model.first.running_total) == 5.0


def test_non_persistent_buffers_are_left_alone():
    model = Net()
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    optimizer = Lookaround(sgd(model.parameters(), lr=0.1), 2, k=1, model=model)
    for j in optimizer.around():
        model.scratch += 1
        step_on_batch(optimizer, model, 0, j)
    assert model.scratch.tolist() == [2, 2]


def test_compiled_and_plain_model_name_their_buffers_alike():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    optimizers = [Lookaround(sgd(model.parameters()), 2, model=each) for each in (model, compiled)]
    names = [list(optimizer._run.branches._buffers.now()) for optimizer in optimizers]
    assert names[0] == names[1] == [name for name, _ in model.named_buffers()]


@pytest.mark.parametrize("make", [lambda o, m: Lookaround(o, 2, k=2, model=m), lambda o, m: Lookahead(o, k=2, model=m)])
def test_spectral_norms_vectors_are_copied_as_running_averages_do(make):
    """A mean of unit vectors is none: after an average u and v are those of the branch that stepped last, of length one."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.utils.spectral_norm(nn.Linear(4, 3))
    optimizer = make(sgd(model.parameters(), lr=0.5), model)
    for step in range(2):
        for j in optimizer.around():
            optimizer.zero_grad()
            model(batch(step, j)).square().mean().backward()
            last = [model.weight_u.clone(), model.weight_v.clone()]
            optimizer.step()
    assert same([model.weight_u, model.weight_v], last)
    torch.testing.assert_close(model.weight_u.norm(), torch.tensor(1.0))


def test_lookahead_with_its_model_averages_running_statistics_with_the_weights():
    model, plain = Net(), Net()
    optimizer, inner = (
        Lookahead(momentum(list(model.parameters())), k=3, model=model),
        momentum(list(plain.parameters())),
    )
    slow = copy.deepcopy(plain.state_dict())
    for step in range(9):
        for _ in optimizer.around():
            step_on_batch(optimizer, model, step, 0)
        step_on_batch(inner, plain, step, 0)
        if step % 3 == 2:
            fast = plain.state_dict()
            slow = {k: v + 0.5 * (fast[k] - v) if v.is_floating_point() else fast[k].clone() for k, v in slow.items()}
            plain.load_state_dict(slow)
        torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_a_buffer_that_changes_shape_in_a_round_is_refused():
    model = Net()
    model.register_buffer("cache", torch.zeros(2))
    optimizer = Lookaround(sgd(model.parameters(), lr=0.1), 2, k=3, model=model)
    step_on_batch(optimizer, model, 0, 0)
    model.cache = torch.zeros(5)
    with pytest.raises(
        ValueError, match=r"'cache' had shape \(2,\).*has \(5,\) now: change a model's buffers between rounds"
    ):
        step_on_batch(optimizer, model, 0, 1)


def test_a_buffer_that_is_new_joins_with_the_next_round():
    """Registered before the first step of a round, it forks there with 1: branches at 1 and 1 + 4, then 2.5 more a round."""
    model = Net()
    optimizer = Lookaround(sgd(model.parameters(), lr=0.1), 2, k=1, model=model)
    for step in range(3):
        for j in optimizer.around():
            if step == 0 and j == 0:
                model.register_buffer("running_late", torch.zeros(()))
            model.running_late += [1.0, 4.0][j]
            step_on_batch(optimizer, model, step, j)
    assert float(model.running_late) == 3.0 + 2 * 2.5
