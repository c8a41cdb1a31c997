"""Contract 3: schedulers, GradScaler, clipping, closures, hooks, zero_grad, repr, deepcopy and pickle."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from conformance.table import WRAPPERS, Net, batch, case, closure_for, momentum, same
from lookaround import SAM, Lookahead, Lookaround
from lookaround.optim.wrapper import chain

anything = pytest.mark.parametrize("name", WRAPPERS)
AVERAGING = [name for name in WRAPPERS if name not in ("sam", "asam")]

SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.5, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


def test_the_table_has_every_scheduler_of_torch():
    assert len(SCHEDULERS) - 1 == len(set(lr_scheduler.__all__) - {"LRScheduler"})


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["lookahead", "lookaround, alpha", "sam", "lookaround around lookahead"])
def test_schedulers_set_the_rates_they_set_on_the_inner_optimizer(name, scheduler):
    wrapped, model = case(name), Net()
    plain = momentum(list(model.parameters()))
    theirs, ours = SCHEDULERS[scheduler](plain), SCHEDULERS[scheduler](wrapped.optimizer)
    for step in range(10):
        wrapped.train(1, step)
        plain.step(closure_for(plain, model, step))
        for each in (ours, theirs):
            each.step(*([1.0] if scheduler == "plateau" else []))
        settings = [{k: g[k] for k in ("lr", "momentum")} for g in wrapped.optimizer.param_groups]
        assert settings == [{k: g[k] for k in ("lr", "momentum")} for g in plain.param_groups]


def test_k_and_alpha_are_scheduled_through_the_groups():
    param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Lookahead(SGD([param], lr=1.0), k=2, alpha=0.5)
    seen = []
    for step in range(6):
        if step == 2:
            optimizer.param_groups[0].update(lookahead_k=1, lookahead_alpha=0.25)
        if step == 4:
            optimizer.k, optimizer.alpha = 2, 0.75
        param.grad = -torch.ones_like(param)
        optimizer.step()
        seen.append(param.item())
    assert seen == [1.0, 1.0, 1.25, 1.5, 2.5, 3.0]


def scaled(optimizer, scaler, model, step, branch, inf=False):
    optimizer.zero_grad()
    scaler.scale(model(batch(step, branch)).square().mean()).backward()
    if inf:
        next(model.parameters()).grad.fill_(float("inf"))
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [None, True])
def test_a_step_skipped_by_the_scaler_is_no_step_in_a_plain_loop(fused):
    """The next minibatch goes to the same branch: the trajectory is that of a training without the bad one."""
    model, clean_model = Net().eval(), Net().eval()
    optimizers = [Lookaround(Adam(m.parameters(), lr=0.01, fused=fused), 2, k=2) for m in (model, clean_model)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000) for _ in range(2)]
    for step in range(9):
        if step in (1, 4):
            before = optimizers[0].branch
            scaled(optimizers[0], scalers[0], model, 99, 0, inf=True)
            assert optimizers[0].branch == before
        for optimizer, scaler, each in zip(optimizers, scalers, (model, clean_model), strict=True):
            scaled(optimizer, scaler, each, step, optimizer.branch)
    assert same(model.state_dict(), clean_model.state_dict())


def test_a_step_skipped_in_around_skips_that_branch_alone():
    """Branches that stepped keep their moves; the pass counts, and each branch gets its own minibatch next time."""
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([param], lr=1.0), branches=2, k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    moves = {0: [-1.0, -2.0], 1: [-10.0, float("inf")]}
    for step in range(2):
        for j in optimizer.around():
            optimizer.zero_grad()
            scaler.scale((param * moves[j][step]).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert param.tolist() == [(3.0 + 10.0) / 2]
    assert optimizer.param_groups[0]["lookaround_round"] == 1


def test_a_pass_in_which_every_step_was_skipped_does_not_count():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookaround(SGD([param], lr=1.0), branches=2, k=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for scale in (float("inf"), -2.0):
        for _ in optimizer.around():
            optimizer.zero_grad()
            scaler.scale((param * scale).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert param.tolist() == [2.0]
    assert optimizer.param_groups[0]["lookaround_round"] == 1


@anything
def test_the_closure_is_called_once_and_its_loss_returned(name):
    wrapped, calls = case(name), []
    twice = any(isinstance(each, SAM) for each in chain(wrapped.optimizer))
    for step in range(7):
        closure = closure_for(wrapped.optimizer, wrapped.model, step)

        def counted(closure=closure, step=step):
            calls.append(closure().item())
            assert torch.is_grad_enabled()
            return torch.tensor(calls[-1])

        calls.clear()
        loss = wrapped.optimizer.step(counted)
        assert len(calls) == (2 if twice else 1)
        assert loss.item() == calls[0]


@pytest.mark.parametrize("name", [n for n in WRAPPERS if "sam" not in n])
def test_a_step_without_a_closure_returns_none(name):
    wrapped = case(name)
    for step in range(7):
        closure_for(wrapped.optimizer, wrapped.model, step)()
        assert wrapped.optimizer.step() is None


@anything
def test_step_hooks_run_once(name):
    wrapped, seen = case(name), []
    handles = [
        wrapped.optimizer.register_step_pre_hook(lambda o, a, k: seen.append(("pre", o))),
        wrapped.optimizer.register_step_post_hook(lambda o, a, k: seen.append(("post", o))),
        register_optimizer_step_pre_hook(lambda o, a, k: seen.append(("any pre", None))),
        register_optimizer_step_post_hook(lambda o, a, k: seen.append(("any post", None))),
    ]
    expected = [("pre", wrapped.optimizer), ("any pre", None), ("any post", None), ("post", wrapped.optimizer)]
    try:
        for step in range(7):
            seen.clear()
            wrapped.train(1, step)
            assert seen == expected
    finally:
        for handle in handles:
            handle.remove()
    seen.clear()
    wrapped.train(1, 7)
    assert not seen


def test_a_pre_hook_may_replace_the_closure():
    param = nn.Parameter(torch.zeros(1))
    optimizer = Lookahead(SGD([param], lr=1.0))
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((args[0], lambda: 7.0), kwargs))
    assert optimizer.step(lambda: 1.0) == 7.0
    assert optimizer.step(closure=lambda: 1.0) == 7.0


@anything
def test_state_dict_and_load_hooks_run_once(name):
    wrapped, seen = case(name).train(2), []
    o = wrapped.optimizer
    o.register_state_dict_pre_hook(lambda o: seen.append("save"))
    o.register_state_dict_post_hook(lambda o, s: {**s, "extra": 1})
    o.register_load_state_dict_pre_hook(lambda o, s: {k: v for k, v in s.items() if k != "extra"})
    o.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    state_dict = o.state_dict()
    assert state_dict["extra"] == 1
    o.load_state_dict(copy.deepcopy(state_dict))
    assert seen == ["save", "loaded"]


@anything
def test_zero_grad_and_repr_are_the_inner_optimizers(name):
    wrapped = case(name)
    params = list(wrapped.model.parameters())
    for to_none in (False, True):
        closure_for(wrapped.optimizer, wrapped.model, 0)()
        wrapped.optimizer.zero_grad(set_to_none=to_none)
        assert all(p.grad is None if to_none else not p.grad.any() for p in params)
    assert "SGD (" in repr(wrapped.optimizer)
    assert type(wrapped.optimizer).__name__ in repr(wrapped.optimizer)
    # What can be set is shown, the place in the round is not.
    assert not re.search("_(round|step|taken|pass|has_slow|inner):", repr(wrapped.optimizer))
    for setting in ("lookahead_k", "lookaround_alpha", "lookaround_branches", "sam_rho"):
        assert (f"{setting}: " in repr(wrapped.optimizer)) == (setting in wrapped.optimizer.param_groups[0])


@anything
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_deep_copy_goes_its_own_way(name, steps, scheduled):
    wrapped = case(name)
    if scheduled:
        lr_scheduler.ConstantLR(wrapped.optimizer, factor=1.0)
    wrapped.train(steps)
    twin = copy.deepcopy(wrapped)
    before = copy.deepcopy([wrapped.model.state_dict(), wrapped.optimizer.state_dict()])
    twin.train(6, steps)
    assert same(before, [wrapped.model.state_dict(), wrapped.optimizer.state_dict()])
    wrapped.train(6, steps)
    assert same(twin.model.state_dict(), wrapped.model.state_dict())
    assert same(twin.optimizer.state_dict(), wrapped.optimizer.state_dict())


@pytest.mark.parametrize("name", [n for n in WRAPPERS if "period" not in n])
def test_a_pickle_goes_its_own_way(name):
    wrapped = case(name).train(5)
    model, optimizer = pickle.loads(pickle.dumps((wrapped.model, wrapped.optimizer)))
    for step in range(5, 11):
        optimizer.step(closure_for(optimizer, model, step))
    wrapped.train(6, 5)
    assert same(model.state_dict(), wrapped.model.state_dict())
    assert same(optimizer.state_dict(), wrapped.optimizer.state_dict())


@pytest.mark.parametrize("name", AVERAGING)
def test_a_deep_copy_made_inside_averaged_has_the_training_weights(name):
    wrapped = case(name).train(4)
    with wrapped.optimizer.averaged():
        twin = copy.deepcopy(wrapped)
    assert same(list(twin.model.parameters()), list(wrapped.model.parameters()))
    twin.train(5, 4)
    wrapped.train(5, 4)
    assert same(list(twin.model.parameters()), list(wrapped.model.parameters()))


@anything
def test_torch_save_of_the_whole_optimizer(name):
    if "period" in name:
        pytest.skip("a function made in place cannot be pickled, by anyone")
    buffer = io.BytesIO()
    torch.save(case(name).train(3).optimizer, buffer)
    buffer.seek(0)
    assert type(torch.load(buffer, weights_only=False)) is type(case(name).optimizer)


@anything
def test_a_compiled_model_trains_as_the_plain_one(name):
    plain, compiled = case(name), case(name)
    compiled.model = torch.compile(compiled.model, backend="eager")
    for step in range(4):
        plain.train(1, step)
        compiled.train(1, step)
    assert same(list(plain.model.parameters()), list(compiled.model.parameters()))
