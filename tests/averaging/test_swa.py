"""n-fold SWA against nested loops written out, and the schedules of its learning rate."""

import copy
import io
import itertools
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lookaround import Lookahead, Lookaround
from lookaround.averaging import CyclicalLR, FoldedSWA, HighConstantLR, PretrainingLR
from reference import nested_loops
from reference.problems import Noisy, set_gradients


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    batches = [(torch.randn(6, 4).double(), torch.randint(3, (6,))) for _ in range(24)]
    return model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), batches


def train_step(model, optimizer, batch):
    inputs, labels = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def written_out(folds, cycle):
    """Algorithms 1 to 3 as printed: samples in a list, the mean at a fold's end, the next fold from there."""
    model, optimizer, batches = problem()
    length = len(batches) // folds
    for fold in range(folds):
        samples = []
        for i in range(1, length + 1):
            train_step(model, optimizer, batches[fold * length + i - 1])
            if i % cycle == 0:
                samples.append(copy.deepcopy(model.state_dict()))
        mean = {k: sum(s[k] for s in samples) / len(samples) for k in samples[0]}
        mean["1.num_batches_tracked"] = samples[-1]["1.num_batches_tracked"]
        model.load_state_dict(mean)
    return model.state_dict()


@pytest.mark.parametrize("folds", [1, 2, 3, 6])
@pytest.mark.parametrize("cycle", [1, 2, 3, 4])
def test_folds_are_the_nested_loops_written_out(folds, cycle):
    model, optimizer, batches = problem()
    swa = FoldedSWA(model, iterations=24, cycle=cycle, folds=folds)
    ends = []
    for batch in batches:
        train_step(model, optimizer, batch)
        ends.append(swa.step())
    assert ends == [i % (24 // folds) == 0 for i in range(1, 25)]
    assert (swa.iteration, swa.fold) == (24, folds)
    assert swa.average.count == 24 // folds // cycle
    for key, value in written_out(folds, cycle).items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cut", [0, 1, 4, 7, 8, 9, 23, 24])
def test_resume_is_bit_exact_from_any_step(cut):
    def go(model, optimizer, swa, batches):
        for batch in batches:
            train_step(model, optimizer, batch)
            swa.step()

    model, optimizer, batches = problem()
    options = {"iterations": 24, "cycle": 2, "folds": 3}
    go(model, optimizer, FoldedSWA(model, **options), batches)
    first, first_optimizer, _ = problem()
    swa = FoldedSWA(first, **options)
    go(first, first_optimizer, swa, batches[:cut])
    file = io.BytesIO()
    torch.save([first.state_dict(), first_optimizer.state_dict(), swa.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second, second_optimizer, _ = problem()
    resumed = FoldedSWA(second, **options)
    for target, state in zip([second, second_optimizer, resumed], states, strict=True):
        target.load_state_dict(state)
    go(second, second_optimizer, resumed, batches[cut:])
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in model.state_dict().items())


def test_points_are_sampled_where_the_caller_says_and_restart_is_told():
    model, restarts = nn.Linear(1, 1, bias=False), []

    @contextmanager
    def point():
        kept = model.weight.item()
        nn.init.constant_(model.weight, 10 * kept)
        yield
        nn.init.constant_(model.weight, kept)

    swa = FoldedSWA(
        model, iterations=4, cycle=1, folds=2, point=point, restart=lambda: restarts.append(model.weight.item())
    )
    for value in (1.0, 3.0, 5.0, 7.0):
        nn.init.constant_(model.weight, value)
        swa.step()
    assert restarts == [20.0, 60.0]
    assert model.weight.item() == 60.0


@pytest.mark.parametrize(
    "wrap", [lambda inner: Lookahead(inner, k=4, alpha=0.5), lambda inner: Lookaround(inner, branches=2, k=3)]
)
def test_swa_inside_a_run_of_rounds_samples_the_average_and_not_a_branch(wrap):
    model, inner, batches = problem()
    optimizer = wrap(inner)
    swa = FoldedSWA(model, iterations=24, cycle=5, point=optimizer.averaged)
    samples = []
    for i, batch in enumerate(batches, start=1):
        train_step(model, optimizer, batch)
        if i % 5 == 0:
            with optimizer.averaged():
                samples.append({k: v.clone() for k, v in model.named_parameters()})
        swa.step()
    for key, value in model.named_parameters():
        torch.testing.assert_close(value, sum(s[key] for s in samples) / len(samples))


def test_every_sample_of_every_fold_is_at_the_lowest_rate():
    model, optimizer, _ = problem()
    swa = FoldedSWA(model, iterations=22, cycle=4, folds=2)
    scheduler = CyclicalLR(optimizer, 1.0, 0.0, cycle=4, fold=11)
    sampled = []
    for _ in range(22):
        rate, samples = scheduler.get_last_lr()[0], swa.average.count
        optimizer.step(), scheduler.step(), swa.step()
        if swa.average.count not in (samples, 0):
            sampled.append(rate)
    assert sampled == [0.0] * 4


def test_a_step_inside_the_averages_context_is_refused_and_not_counted():
    model, _, _ = problem()
    swa = FoldedSWA(model, iterations=4, cycle=1)
    swa.step()
    with swa.average.averaged(), pytest.raises(ValueError, match=r"step\(\)"):
        swa.step()
    assert (swa.iteration, swa.average.count) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "name"), [({"iterations": 18}, "iterations"), ({"cycle": 1}, "cycle"), ({"folds": 3}, "folds")]
)
def test_a_state_of_another_procedure_is_refused(changes, name):
    model, _, _ = problem()
    options = {"iterations": 12, "cycle": 2, "folds": 2}
    state = FoldedSWA(model, **options).state_dict()
    with pytest.raises(
        ValueError, match=f"the state is of {name}={options[name]}, this procedure has {name}={changes[name]}"
    ):
        FoldedSWA(model, **{**options, **changes}).load_state_dict(state)
    with pytest.raises(
        ValueError, match="not a state of FoldedSWA: it has no average, cycle, folds, iteration, iterations"
    ):
        FoldedSWA(model, **options).load_state_dict({})


def test_what_cannot_make_points_is_refused_at_once():
    model, inner, _ = problem()
    with pytest.raises(TypeError, match=r"pass optimizer\.averaged, not called"):
        FoldedSWA(model, iterations=4, cycle=1, point=Lookahead(inner).averaged())
    with pytest.raises(TypeError, match=r"cycle must be an integer, got 2\.5"):
        FoldedSWA(model, iterations=4, cycle=2.5)


@pytest.mark.parametrize("folds", [1, 2, 3])
@pytest.mark.parametrize(("branches", "alpha"), [(1, 0.5), (3, 1.0), (2, 0.6)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_folds_inside_rounds_are_the_nested_loops_written_out(folds, branches, alpha, k):
    problem, length = Noisy(5), 24 // folds
    start, ended = problem.start, 0
    for _ in range(folds):  # each fold is a run of its own, from the mean of the one before
        loops = nested_loops.lookaround(
            start,
            lambda branch, step, weights, ended=ended: problem.gradient(branch, ended + step, weights),
            lambda params: torch.optim.SGD(params, lr=0.1),
            -(-length // k),
            lambda t: k,
            branches,
            alpha,
        )
        points = [weights[0] for weights in itertools.islice(loops, length)]
        samples = points[k - 1 :: k]
        start = [sum(column) / len(samples) for column in zip(*samples, strict=True)]
        ended += length
    model = nn.ParameterList(problem.parameters())
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=0.1), branches, k, alpha=alpha)
    swa = FoldedSWA(model, iterations=24, cycle=k, folds=folds, point=optimizer.averaged, restart=optimizer.restart)
    for step in range(24):
        for branch in optimizer.around():
            set_gradients(list(model), problem.gradient(branch, step, list(model)))
            optimizer.step()
        swa.step()
    torch.testing.assert_close([p.detach() for p in model], start, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 10, "cycle": 1, "folds": 3}, "10 iterations in 3 folds"),
        ({"iterations": 10, "cycle": 1, "folds": 0}, "0 folds"),
        ({"iterations": 0, "cycle": 1}, "0 iterations"),
        ({"iterations": 10, "cycle": 6, "folds": 2}, "from 1 to the 5 iterations of a fold, got 6"),
        ({"iterations": 10, "cycle": 0}, "got 0"),
    ],
)
def test_procedures_that_do_not_divide_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        FoldedSWA(nn.Linear(1, 1), **options)


def test_a_step_too_many_and_a_foreign_state_are_errors():
    swa = FoldedSWA(nn.Linear(1, 1), iterations=1, cycle=1)
    swa.step()
    with pytest.raises(ValueError, match="all 1 iterations"):
        swa.step()
    with pytest.raises(ValueError, match="the state is damaged: it is of iteration 2 of 1"):
        swa.load_state_dict({**swa.state_dict(), "iteration": 2})


SCHEDULES = {
    "constant": (lambda o: HighConstantLR(o, 0.05), lambda i: 0.05),
    "cyclical": (lambda o: CyclicalLR(o, 0.05, 0.01, cycle=3), lambda i: 0.05 - 0.04 * (((i - 1) % 3) + 1) / 3),
    "cyclical in folds": (
        lambda o: CyclicalLR(o, 0.05, 0.01, cycle=3, fold=7),
        lambda i: 0.05 - 0.04 * ((((i - 1) % 7) % 3) + 1) / 3,
    ),
    "pre-training": (
        lambda o: PretrainingLR(o, 0.05, 0.01, total=20),
        lambda i: 0.05 if i <= 11 else 0.01 if i >= 19 else 0.05 - 0.04 * ((i - 1) / 20 - 0.5) / 0.4,
    ),
}


def rates(scheduler, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == [g["lr"] for g in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
    return found


def sgd(groups=1):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(groups)], lr=1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_have_their_closed_form_and_resume(name):
    make, expected = SCHEDULES[name]
    optimizer = sgd()
    scheduler = make(optimizer)
    assert isinstance(scheduler, LRScheduler)
    whole = rates(scheduler, optimizer, 24)
    assert whole == pytest.approx([expected(i) for i in range(1, 25)])
    for cut in (1, 2, 11, 20):
        before = sgd()
        first = make(before)
        rates(first, before, cut)
        after = sgd()
        second = make(after)
        after.load_state_dict(before.state_dict())
        second.load_state_dict(first.state_dict())
        assert rates(second, after, 24 - cut) == whole[cut:]


def test_schedules_take_a_rate_for_each_group_and_name_mistakes():
    optimizer = sgd(2)
    CyclicalLR(optimizer, [1.0, 2.0], [0.0, 1.0], cycle=2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 1.5]
    for make, message in [
        (lambda: HighConstantLR(sgd(), [0.1, 0.2]), "one number or 1"),
        (lambda: HighConstantLR(sgd(), -0.1), "not be negative, got -0.1"),
        (lambda: CyclicalLR(sgd(), 0.1, 0.0, cycle=0), "cycle must be a whole number of at least 1, got 0"),
        (lambda: CyclicalLR(sgd(), 0.1, 0.0, cycle=1.5), "cycle must be a whole number of at least 1, got 1.5"),
        (lambda: CyclicalLR(sgd(), 0.1, 0.0, cycle=2, fold=2.5), "fold must be a whole number of at least 1, got 2.5"),
        (lambda: CyclicalLR(sgd(), 0.1, 0.0, cycle=4, fold=3), "fold must be at least a cycle of 4 steps, got 3"),
        (lambda: PretrainingLR(sgd(), 0.1, 0.0, total=0), "total must be a whole number of at least 1, got 0"),
        (lambda: PretrainingLR(sgd(), 0.1, 0.0, total=2.5), "total must be a whole number of at least 1, got 2.5"),
        (lambda: PretrainingLR(sgd(), 0.1, 0.0, total=9, decrease_from=0.9, decrease_to=0.5), "in order"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
