"""What belongs to a branch: buffers, nested slow weights and counters; branches that diverge; the phase before branching."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from conformance.table import Net, batch, momentum, same
from lookaround import Lookahead, Lookaround
from reference import nested_loops
from reference.problems import INNERS, Noisy, set_gradients, train


def sgd(params, lr=1.0, **settings):
    return SGD(params, lr=lr, **settings)


def one_pass(optimizer, param, gradients):
    for j in optimizer.around():
        param.grad = torch.as_tensor(gradients[j], dtype=param.dtype).expand_as(param).clone()
        optimizer.step()


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
