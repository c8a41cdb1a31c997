"""What belongs to a branch: nested slow weights and counters, momentum; branches that diverge; the phase before branching."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from conformance.table import same
from lookaround import Lookahead, Lookaround, packed
from reference import nested_loops
from reference.problems import INNERS, Noisy, set_gradients, train


def sgd(params, lr=1.0, **settings):
    return SGD(params, lr=lr, **settings)


def one_pass(optimizer, param, gradients):
    for j in optimizer.around():
        param.grad = torch.as_tensor(gradients[j], dtype=param.dtype).expand_as(param).clone()
        optimizer.step()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", [{0}, {1}, {2}, {0, 2}, {0, 1}, {1, 2}])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_branches_that_are_not_finite_are_left_out_and_restart(broken, bad, alpha):
    """They take the average, and a healthy branch's momentum: in the next round every branch is finite again."""
    param = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = Lookaround(sgd([param], momentum=0.5), branches=3, k=1, alpha=alpha)
    healthy = [j for j in range(3) if j not in broken]
    gradients = [bad if j in broken else -(j + 1.0) for j in range(3)]
    with pytest.warns(RuntimeWarning, match="infinite or NaN.*left out of the average of round 0") as caught:
        one_pass(optimizer, param, gradients)
    assert len(caught) == len(broken)
    mean = sum(j + 1.0 for j in healthy) / len(healthy)
    assert param.tolist() == [alpha * mean] * 2
    ends = []
    for _ in optimizer.around():
        assert param.tolist() == [alpha * mean] * 2
        param.grad = torch.zeros_like(param)
        optimizer.step()
        ends.append(param.tolist()[0])
    healthy_moves = {0.5 * (j + 1.0) for j in healthy}
    assert all(end - alpha * mean in healthy_moves for end in ends)


def test_if_no_branch_is_finite_it_raises():
    param = nn.Parameter(torch.zeros(2))
    optimizer = Lookaround(sgd([param]), branches=2, k=1)
    with pytest.raises(ValueError, match="all 2 branches are infinite or NaN"):
        one_pass(optimizer, param, [float("nan"), float("inf")])


def test_large_float64_weights_are_finite():
    param = nn.Parameter(torch.full((2,), 1e300, dtype=torch.float64))
    optimizer = Lookaround(sgd([param]), branches=2, k=1)
    one_pass(optimizer, param, [0.0, 0.0])
    assert param.tolist() == [1e300] * 2


@pytest.mark.parametrize("inner", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("outer_k", "inner_k"), [(6, 2), (2, 3), (3, 3)])
def test_lookaround_around_lookahead_keeps_one_lookahead_for_each_branch(inner, alpha, outer_k, inner_k):
    """d Lookaheads apart, whose fast and slow weights are both averaged at the outer average, each between its values there."""
    problem, branches = Noisy(9), 3
    params = problem.parameters()
    optimizer = Lookaround(Lookahead(INNERS[inner](params), k=inner_k), branches, k=outer_k, alpha=alpha)
    fast = [problem.parameters() for _ in range(branches)]
    apart = [INNERS[inner](weights) for weights in fast]
    slow = [nested_loops.copies(problem.start) for _ in range(branches)]
    outer, outer_slow = nested_loops.copies(problem.start), nested_loops.copies(problem.start)
    for step in range(24):
        for j in optimizer.around():
            nested_loops.inner_step(fast[j], apart[j], problem.gradient(j, step, fast[j]))
            if (step + 1) % inner_k == 0:
                slow[j] = [phi + 0.5 * (theta.detach() - phi) for phi, theta in zip(slow[j], fast[j], strict=True)]
                nested_loops.put(fast[j], slow[j])
            set_gradients(params, problem.gradient(j, step, params))
            optimizer.step()
        if (step + 1) % outer_k == 0:
            outer = towards(outer, fast, alpha)
            outer_slow = towards(outer_slow, slow, alpha)
            for j in range(branches):
                nested_loops.put(fast[j], outer)
                slow[j] = nested_loops.copies(outer_slow)
        torch.testing.assert_close([p.detach() for p in params], nested_loops.copies(fast[0]), rtol=1e-10, atol=1e-10)


def towards(phi, branches, alpha):
    means = [sum(t.detach() for t in column) / len(branches) for column in zip(*branches, strict=True)]
    return [p + alpha * (m - p) for p, m in zip(phi, means, strict=True)]


def test_a_group_added_in_the_last_pass_joins_a_nested_lookahead():
    first, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(Lookahead(sgd([first]), k=2), branches=2, k=1, alpha=0.5)
    for step in range(8):
        for j in optimizer.around():
            if step == 1 and j == 1:
                optimizer.add_param_group({"params": [late]})
            first.grad, late.grad = torch.ones(1), torch.ones(1)
            optimizer.step()
    assert torch.isfinite(late).all()


def test_the_shared_phase_is_the_inner_optimizer_with_all_branches_steps():
    """start passes of d steps on one set of weights and one inner state; then the branches part."""
    first, second = Noisy(3, torch.float32), Noisy(3, torch.float32)
    params, plain_params = first.parameters(), second.parameters()
    optimizer = Lookaround(Adam(params, lr=0.1), branches=3, k=2, start=4)
    plain = train(Adam(plain_params, lr=0.1), plain_params, second, 12)
    for expected, got in zip(plain, train(optimizer, params, first, 12), strict=True):
        assert all(map(torch.equal, got, expected))
        assert not any("branch." in key for entry in optimizer.state.values() for key in entry)
    assert optimizer.branch == 0
    common = [p.detach().clone() for p in params]
    for step in range(2):
        for j in optimizer.around():
            if step == 0:
                assert same([p.detach() for p in params], common)
            set_gradients(params, first.gradient(j, 12 + step, params))
            optimizer.step()
    assert optimizer.param_groups[0]["lookaround_round"] == 1


def test_the_shared_phase_mixes_with_around_and_resumes():
    problem = Noisy(4)
    params = problem.parameters()
    optimizer = Lookaround(sgd(params, lr=0.1, momentum=0.9), branches=2, k=2, start=2, alpha=0.5)
    list(train(optimizer, params, problem, 3))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed_params = [nn.Parameter(p.detach().clone()) for p in params]
    resumed = Lookaround(sgd(resumed_params, lr=0.1, momentum=0.9), branches=2, k=2, start=2, alpha=0.5)
    resumed.load_state_dict(saved)
    for a, b in zip(
        train(optimizer, params, problem, 9, 3), train(resumed, resumed_params, problem, 9, 3), strict=True
    ):
        assert all(map(torch.equal, a, b))


def test_in_the_shared_phase_averaged_shows_the_weights_themselves():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(sgd([param]), branches=2, k=1, start=2)
    one_pass(optimizer, param, [-1.0, -2.0])
    with optimizer.averaged():
        assert param.tolist() == [3.0]
    optimizer.average()
    assert param.tolist() == [3.0]


def test_offload_does_nothing_on_the_cpu():
    ends = []
    for offload in (False, True):
        problem = Noisy(5)
        params = problem.parameters()
        *_, end = train(Lookaround(Adam(params), 3, k=2, offload=offload), params, problem, 13)
        ends.append(end)
    assert same(*ends)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading moves tensors from an accelerator")
def test_offload_keeps_idle_branches_in_pinned_memory():
    problem = Noisy(5, torch.float32)
    params, plain = ([nn.Parameter(w.cuda()) for w in problem.start] for _ in range(2))
    offloaded, kept = Lookaround(Adam(params), 3, k=2, offload=True), Lookaround(Adam(plain), 3, k=2)
    for step in range(13):
        for optimizer, weights in ((offloaded, params), (kept, plain)):
            set_gradients(weights, [g.cuda() for g in problem.gradient(0, step, [w.cpu() for w in weights])])
            optimizer.step()
        assert same([p.detach() for p in params], [p.detach() for p in plain])
    idle = [t for p in params for key, t in offloaded.state[p].items() if key.endswith(".weights")]
    assert idle
    assert all(t.is_pinned() for t in idle)


def test_around_left_half_way_says_so_and_goes_on_with_what_is_left():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(sgd([param]), branches=3, k=2)
    param.grad = torch.ones(1)
    for j in optimizer.around():
        optimizer.step()
        if j == 1:
            break
    with pytest.raises(ValueError, match=r"left at branch 1 of 3 and followed by step\(\)"):
        optimizer.step()
    with pytest.warns(RuntimeWarning, match="left at branch 1 of 3"):
        rest = optimizer.around()
    assert [j for j in rest if optimizer.step() is None] == [2]
    assert optimizer.param_groups[0]["lookaround_step"] == 1
    for _ in optimizer.around():
        break
    optimizer.average()
    one_pass(optimizer, param, [0.0, 0.0, 0.0])


def test_a_second_loop_inside_the_first_is_refused():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(sgd([param]), branches=2)
    for _ in optimizer.around():
        with pytest.raises(ValueError, match="entered again"):
            optimizer.around()
        param.grad = torch.ones(1)
        optimizer.step()


def test_interpolated_momentum_follows_each_groups_own_alpha():
    params = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    optimizer = Lookahead(sgd([{"params": [p]} for p in params], momentum=0.5), k=1, inner_state="interpolate")
    for group, alpha in zip(optimizer.param_groups, (1.0, 0.25), strict=True):
        group["lookahead_alpha"] = alpha
    for p in params:
        p.grad = torch.full((1,), -4.0, dtype=torch.float64)
    optimizer.step()
    assert [p.item() for p in params] == [4.0, 1.0]
    assert [optimizer.state[p]["momentum_buffer"].item() for p in params] == [-4.0, -1.0]


def test_a_mode_that_finds_no_momentum_says_so_once():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(sgd([param]), k=1, inner_state="reset")
    param.grad = torch.ones(1)
    with pytest.warns(UserWarning, match="'reset' is ignored: SGD keeps no momentum"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def bits(tensor):
    return tensor.detach().numpy().tobytes()  # NaN is equal to NaN so


def small_and_large(monkeypatch, steps, **settings):
    """Weights and state after every step, of a model that is one small block and of one that is not."""
    trajectories = []
    for small in (2**18, 0):
        monkeypatch.setattr(packed, "SMALL", small)
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.tensor(0.3))]
        optimizer = Lookaround(sgd(params, lr=0.1, momentum=0.9), branches=3, k=2, **settings)
        trajectory = []
        for step in range(steps):
            for param in params:
                param.grad = torch.randn_like(param)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                diverge(params, step)
                optimizer.step()
            entries = optimizer.state_dict()["state"].values()
            kept = [(key, bits(value)) for entry in entries for key, value in sorted(entry.items())]
            trajectory.append((list(map(bits, params)), kept))
        trajectories.append(trajectory)
    return trajectories


def diverge(params, step):
    """Branch 1 becomes infinite, then branch 0 NaN; then weights whose mean overflows, and whose sum does, though all are finite."""
    if step in (7, 12):
        params[1].grad[2] = float("inf") if step == 7 else float("nan")
    if step in (19, 20):
        params[0].data.fill_(3e38 if step == 19 else -3e38)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_a_small_model_is_averaged_bit_for_bit_as_a_large_one(monkeypatch, alpha):
    small, large = small_and_large(monkeypatch, 24, alpha=alpha)
    for step, (ours, theirs) in enumerate(zip(small, large, strict=True)):
        assert ours == theirs, step


@pytest.mark.parametrize("step", [7, 12])
def test_which_branches_of_a_small_model_are_left_out_is_said(step):
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(5))]
    optimizer = Lookaround(sgd(params), branches=3, k=2)
    for now in range(step // 6 * 6 + 5):
        for param in params:
            param.grad = torch.full_like(param, float("nan") if now == step else 1.0)
        optimizer.step()
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.warns(RuntimeWarning, match=f"branch {step % 3} of 3 .* left out"):
        optimizer.step()


def test_the_sum_of_a_small_model_may_overflow():
    """All weights are finite, and so is their mean: nobody is left out, and nothing is said."""
    param = nn.Parameter(torch.full((4,), 2e38))
    optimizer = Lookaround(sgd([param]), branches=2, k=1)
    one_pass(optimizer, param, [0.0, 0.0])
    assert param.tolist() == [torch.tensor(2e38).item()] * 4


def test_a_branch_with_attributes_of_its_own_gets_them_back():
    """An inner optimizer may set an attribute in one branch's step, and delete another: the other branches have theirs as before."""

    class Counting(SGD):
        def step(self, closure=None):
            if branch == 1:
                self.only = getattr(self, "only", 0) + 1
                vars(self).pop("first", None)
            seen.append((branch, getattr(self, "only", 0), hasattr(self, "first")))
            return super().step(closure)

    params = [nn.Parameter(torch.zeros(2))]
    inner = Counting(params, lr=0.1)
    inner.first, seen = True, []
    optimizer = Lookaround(inner, branches=3, k=100)
    for _ in range(3):
        for branch in optimizer.around():  # noqa: B007
            params[0].grad = torch.ones(2)
            optimizer.step()
    rounds = [[(0, 0, True), (1, n, False), (2, 0, True)] for n in (1, 2, 3)]
    assert seen == [turn for turns in rounds for turn in turns]
