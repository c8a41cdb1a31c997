"""`restart()` begins a new round, of every branch and of φ, from weights that something else has put into the model."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD

from conformance.table import WRAPPERS, Net, case, same
from conformance.table import train as train_net
from lookaround import Lookahead, Lookaround
from reference import nested_loops
from reference.problems import INNERS, Noisy, set_gradients, train

AVERAGING = [name for name in WRAPPERS if name not in ("sam", "asam")]


def replace(tensors, seed=7):
    """Put new values into floating tensors in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    branches=st.integers(1, 3),
    k=st.integers(1, 5),
    alpha=st.sampled_from([0.3, 1.0]),
    inner=st.sampled_from(sorted(INNERS)),
    state=st.sampled_from(["maintain", "interpolate", "reset"]),
    at=st.sets(st.integers(1, 50), max_size=8),
    around=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:inner_state=.* is ignored:UserWarning")
def test_it_follows_its_reference_at_any_step(branches, k, alpha, inner, state, at, around):
    problem, make = Noisy(11), INNERS[inner]
    restarts = {step: problem.draw(step, problem.start) for step in at}
    loops = nested_loops.lookaround(
        problem.start, problem.gradient, make, 60, lambda t: k, branches, alpha, state, restarts
    )
    params = problem.parameters()
    optimizer = Lookaround(make(params), branches, k, alpha=alpha, inner_state=state)
    for step, expected in zip(range(1, 55), loops, strict=False):
        for j in optimizer.around() if around else range(branches):
            assert optimizer.branch == j
            set_gradients(params, problem.gradient(j, step - 1, params))
            optimizer.step()
        if step in restarts:
            nested_loops.put(params, restarts[step])
            optimizer.restart()
        torch.testing.assert_close([p.detach() for p in params], expected[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("steps", range(9))
def test_the_average_is_then_what_the_model_holds(name, steps):
    each = case(name).train(steps)
    keys = {key for entry in each.optimizer.state_dict()["state"].values() for key in entry}
    replace(each.model.state_dict(keep_vars=True).values())
    expected = [p.detach().clone() for p in each.model.parameters()]
    statistics = each.model.body[1].running_var.clone()
    each.optimizer.restart()
    with each.optimizer.averaged():
        assert same(expected, [p.detach() for p in each.model.parameters()])
        assert torch.equal(statistics, each.model.body[1].running_var)
    branches = each.optimizer.branches
    if steps >= branches:  # by then every branch has its momentum
        assert {key for entry in each.optimizer.state_dict()["state"].values() for key in entry} == keys
    for _ in range(branches):  # with no learning rate, every branch stays where it starts
        for group in each.optimizer.param_groups:
            group["lr"] = 0.0
        assert same(expected, [p.detach() for p in each.model.parameters()])
        each.train(1, steps)
    each.optimizer.average()
    torch.testing.assert_close([p.detach() for p in each.model.parameters()], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", AVERAGING)
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_checkpoint_after_it_goes_on_bit_for_bit(name, steps):
    first, second = case(name).train(steps), case(name, seed=1)
    replace(first.model.parameters())
    first.optimizer.restart()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    first.train(7, steps), second.train(7, steps)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.optimizer.state_dict(), second.optimizer.state_dict())


def test_before_the_first_step_it_is_silent_and_changes_nothing():
    problem = Noisy(12)
    runs = []
    for restarted in (False, True):
        params = problem.parameters()
        optimizer = Lookaround(INNERS["momentum"](params), 2, 3, alpha=0.5, inner_state="interpolate")
        if restarted:
            optimizer.restart()
        runs.append(list(train(optimizer, params, problem, 20)))
    assert same(*runs)


def test_the_weights_may_be_replaced_again_before_the_first_step_of_the_new_round():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(SGD([weight], lr=0.5), k=2, alpha=0.5)
    for value in (4.0, 8.0):
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        weight.data.fill_(3.0)
        optimizer.restart()
        weight.data.fill_(value)
        optimizer.restart()
        for _ in range(2):
            weight.grad = torch.tensor([1.0])
            optimizer.step()
        assert weight.item() == value - 0.5  # 1 down in two steps, half of it back


def test_while_start_lasts_the_shared_branch_takes_the_weights_as_they_are():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=2, k=2, start=2)
    seen = []
    for step in range(8):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        if step == 0:
            weight.data.fill_(10.0)
            optimizer.restart()
        seen.append(weight.item())
    # One step before and three after the restart in the shared weights, then two of each branch: the second begins at 13.
    assert seen == [10.0, 11.0, 12.0, 13.0, 13.0, 14.0, 14.0, 15.0]


def test_while_start_lasts_around_goes_on_to_its_last_branch():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=3, k=2, start=2)
    turns = []
    for branch in optimizer.around():
        turns.append(branch)
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        optimizer.restart()
    assert turns == [0, 1, 2]


def test_an_unfinished_round_counts_as_one():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookahead(SGD([weight], lr=1.0), k=lambda t: 3 + t)
    weight.grad = torch.tensor([0.0])
    optimizer.restart()
    assert optimizer.k == 3
    optimizer.step()
    optimizer.restart()
    optimizer.restart()
    assert optimizer.k == 4


def test_inside_the_body_of_around_it_ends_the_loop():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0), branches=3, k=2)
    turns = []
    for branch in optimizer.around():
        turns.append(branch)
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        if branch == 1:
            weight.data.fill_(5.0)
            optimizer.restart()
    assert (turns, optimizer.branch, weight.item()) == ([0, 1], 0, 5.0)
    assert list(optimizer.around()) == [0, 1, 2]


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize(("state", "momentum"), [("maintain", -1.0), ("interpolate", -1.0), ("reset", 0.0)])
def test_a_branch_that_is_not_finite_takes_another_ones_momentum(broken, state, momentum):
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(SGD([weight], lr=1.0, momentum=0.5), branches=2, k=5, inner_state=state)
    for branch in optimizer.around():
        weight.grad = torch.tensor([float("nan") if branch == broken else -1.0])
        optimizer.step()
    weight.data.fill_(2.0)
    with pytest.warns(RuntimeWarning, match=f"branch {broken} of 2 has an inner state that is infinite or NaN"):
        optimizer.restart()
    for _ in optimizer.around():
        weight.grad = torch.tensor([0.0])
        optimizer.step()
        assert weight.item() == 2.0 - 0.5 * momentum


def test_what_is_not_finite_cannot_be_a_start():
    for branches in (1, 2):
        weight = torch.nn.Parameter(torch.tensor([0.0]))
        optimizer = Lookaround(SGD([weight], lr=1.0, momentum=0.5), branches=branches, k=5)
        for _ in range(branches):
            weight.grad = torch.tensor([float("inf")])
            optimizer.step()
        with pytest.raises(
            ValueError, match="the weights in the model are infinite or NaN: no round can start from them"
        ):
            optimizer.restart()
        weight.data.fill_(1.0)
        with pytest.raises(ValueError, match=f"the inner state of all {branches} branches is infinite or NaN"):
            optimizer.restart()


def test_a_wrapper_inside_takes_the_new_start_in_every_branch():
    """In the first pass its φ is there for the branches that have stepped alone, and the branch in the model is not one of them."""
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookaround(Lookahead(SGD([weight], lr=1.0), k=2, alpha=0.5), branches=2, k=10)
    weight.grad = torch.tensor([-1.0])
    optimizer.step()
    weight.data.fill_(100.0)
    optimizer.restart()
    seen = []
    for _ in optimizer.around():
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
        seen.append(weight.item())
    # The first goes on with the second step of its round, from 100 to 101 and half-way back; the second takes its first.
    assert seen == [100.5, 101.0]


def test_buffers_of_a_wrapper_inside_are_of_the_new_start():
    model = Net()
    inner = Lookaround(SGD(model.parameters(), lr=0.1), 1, k=3, alpha=0.5, model=model)
    optimizer = Lookahead(inner, k=5)
    train_net(optimizer, model, 2)
    model.body[1].running_var.fill_(7.0)
    optimizer.restart()
    assert torch.equal(
        optimizer.state[next(model.parameters())]["lookaround.slow.buffers.body.1.running_var"], torch.full((5,), 7.0)
    )


def test_a_checkpoint_after_it_in_the_first_round_is_checked_like_any_other():
    with_model, without = case("lookaround, model"), case("lookaround")
    for each in (with_model, without):
        each.train(1)
        each.optimizer.restart()
    for saved, target in ((with_model, case("lookaround")), (without, case("lookaround, model"))):
        with pytest.raises(ValueError, match="buffers"):
            target.optimizer.load_state_dict(saved.optimizer.state_dict())
    cut = copy.deepcopy(without.optimizer.state_dict())
    for entry in cut["state"].values():
        del entry["lookaround.branch.1.weights"]
    with pytest.raises(ValueError, match="the checkpoint lacks"):
        case("lookaround").optimizer.load_state_dict(cut)


def test_inside_averaged_it_is_refused():
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    optimizer = Lookahead(SGD([weight], lr=1.0))
    with optimizer.averaged(), pytest.raises(ValueError, match=r"restart\(\) was called inside averaged"):
        optimizer.restart()
