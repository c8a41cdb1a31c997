"""Averages and wrappers put something to look at into one model: in every order it is exact, or refused by name, and nothing is lost."""

import copy
import gc
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lookaround import SAM, Lookahead, Lookaround
from lookaround.averaging import (
    SWAD,
    FoldedSWA,
    RunningAverage,
    SnapshotCollector,
    SwitchEMA,
    lawa,
    uniform,
    update_norm_stats,
)

WRAPPERS = {
    "lookaround": lambda inner, model: Lookaround(inner, branches=3, k=2),
    "lookaround, model": lambda inner, model: Lookaround(inner, branches=3, k=2, model=model),
    "lookahead": lambda inner, model: Lookahead(inner, k=3, alpha=0.5),
    "overlapped": lambda inner, model: Lookaround(inner, branches=2, k=3, overlap=1),
    "around a lookahead": lambda inner, model: Lookaround(Lookahead(inner, k=2), branches=2, k=3),
    "in a SAM": lambda inner, model: SAM(Lookahead(inner, k=3, alpha=0.5), rho=0.1),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


class Trained:
    """A small network with batch norm and a wrapper in the middle of a round, and two averages of it with other values."""

    def __init__(self, wrap, steps=4, rules=None, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.optimizer = wrap(torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9), self.model)
        self.averages = [RunningAverage(self.model, rule) for rule in rules or (uniform(), uniform())]
        self.steps = 0
        for _ in range(steps):
            self.step()
            self.averages[0].update()
        self.averages[1].update()

    def loss(self):
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(self.steps))
        return self.model(x).square().mean()

    def backward(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss

    def step(self):
        self.steps += 1
        self.backward()
        self.optimizer.step(self.backward)

    def now(self):
        return [t.detach().clone() for t in self.model.state_dict().values()]

    def seen(self, context):
        with context:
            return self.now()


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


OPERATIONS = ("a", "b", "o", "leave 0", "leave 1", "leave 2", "eval", "train")


@every_wrapper
@settings(max_examples=40, deadline=None)
@given(operations=st.lists(st.sampled_from(OPERATIONS), max_size=12))
def test_in_every_order_the_model_holds_what_was_entered_last_and_loses_nothing(wrap, operations):
    it, twin = Trained(wrap), Trained(wrap)
    start = it.now()
    makes = {"a": it.averages[0].averaged, "b": it.averages[1].averaged, "o": it.optimizer.averaged}
    values = {name: it.seen(make()) for name, make in makes.items()}
    assert not equal(values["a"], values["b"])
    open_, evaluating = [], False  # names with their contexts, the oldest first; eval() stands among them without one

    def is_mine():
        above = [name for name, _ in open_]
        return not above or above[-1] in ("o", "eval")

    for operation in operations:
        if operation in makes and (operation != "o" or is_mine()):
            context = makes[operation]()
            context.__enter__()
            open_.append((operation, context))
        elif operation == "o":
            with pytest.raises(
                ValueError, match=r"averaged\(\) of a Look\w+ was called while .* averaged\(\) of a RunningAverage"
            ):
                makes["o"]().__enter__()
        elif operation.startswith("leave"):
            contexts = [each for each in open_ if each[1] is not None]
            if contexts:
                leaving = contexts[int(operation[-1]) % len(contexts)]
                open_.remove(leaving)
                leaving[1].__exit__(None, None, None)
        elif operation == "eval" and is_mine():
            it.optimizer.eval()
            if not evaluating:
                open_.append(("eval", None))
            evaluating = True
        elif operation == "train" and (is_mine() or not evaluating):
            it.optimizer.train()
            evaluating = False
            open_ = [each for each in open_ if each[1] is not None]
        else:
            with pytest.raises(
                ValueError, match=rf"{operation}\(\) of a Look\w+ was called while .* averaged\(\) of a RunningAverage"
            ):
                getattr(it.optimizer, operation)()
        top = open_[-1][0] if open_ else None
        expected = start if top is None else values["o" if top == "eval" else top]
        assert equal(it.now(), expected)
    for name, context in open_[::-1]:
        it.optimizer.train() if name == "eval" else context.__exit__(None, None, None)
    assert equal(it.now(), start)
    for _ in range(3):
        it.step(), twin.step()
    assert equal(it.now(), twin.now())


@every_wrapper
@pytest.mark.parametrize("call", ["step", "around", "average", "restart", "load_state_dict", "eval"])
def test_inside_an_averages_block_a_wrapper_does_nothing_that_would_be_lost(wrap, call):
    it, twin = Trained(wrap), Trained(wrap)
    state = copy.deepcopy(it.optimizer.state_dict())
    arguments = {"step": [lambda: torch.zeros(())], "load_state_dict": [state]}.get(call, [])
    with it.averages[0].averaged():
        with pytest.raises(ValueError, match=rf"{call}\(\).* averaged\(\) of a RunningAverage.*leave that block first"):
            list(getattr(it.optimizer, call)(*arguments) or ())
        it.optimizer.train()  # nothing to change
    for _ in range(3):
        it.step(), twin.step()
    assert equal(it.now(), twin.now())


class Modes(torch.optim.SGD):
    """In the style of schedule-free optimizers: `eval` writes to the weights, and `train` takes that back."""

    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
        self.training = True

    @torch.no_grad()
    def _turn(self, training, by):
        if self.training != training:
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(by)
        self.training = training

    def eval(self):
        self._turn(False, 1.0)

    def train(self):
        self._turn(True, -1.0)


@pytest.mark.parametrize(
    "wrap", [lambda o: Lookahead(o, k=2), lambda o: Lookaround(o, branches=2, k=2), lambda o: SAM(o, rho=0.1)]
)
def test_modes_of_an_inner_optimizer_are_not_changed_while_an_average_is_shown(wrap):
    weight = nn.Parameter(torch.tensor([4.0]))
    model = nn.ParameterList([weight])
    optimizer, average = wrap(Modes(model.parameters(), lr=1.0)), RunningAverage(model, uniform())
    average.update()
    weight.data.fill_(8.0)
    for mode in ("eval", "train"):
        with (
            average.averaged(),
            pytest.raises(ValueError, match=rf"{mode}\(\) of a \w+ was called while.*leave that block first"),
        ):
            getattr(optimizer, mode)()
        assert weight.item() == 8.0
    optimizer.eval()
    assert weight.item() == 9.0
    with average.averaged():
        assert weight.item() == 4.0
        with pytest.raises(ValueError, match=r"train\(\) of a \w+ was called while"):
            optimizer.train()
    optimizer.train()
    assert weight.item() == 8.0


def test_an_inner_optimizer_changes_its_mode_around_the_wrappers_own_block_and_not_in_it():
    weight = nn.Parameter(torch.tensor([8.0]))
    optimizer = Lookahead(Modes([weight], lr=1.0), k=2)
    with (
        optimizer.averaged(),
        pytest.raises(ValueError, match=r"eval\(\) of a Lookahead was called inside its averaged\(\)"),
    ):
        optimizer.eval()
    optimizer.eval()
    with (
        optimizer.averaged(),
        pytest.raises(ValueError, match=r"train\(\) of a Lookahead was called inside its averaged\(\)"),
    ):
        optimizer.train()
    optimizer.train()
    assert weight.item() == 8.0


@pytest.mark.parametrize("of", ["RunningAverage", "SWAD", "FoldedSWA", "SwitchEMA", "SnapshotCollector"])
def test_an_average_that_is_shown_is_no_point_of_another_one(of):
    it = Trained(WRAPPERS["lookahead"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        torch.optim.SGD(it.model.parameters(), lr=0.1), T_0=2
    )
    make = {
        "RunningAverage": lambda: RunningAverage(it.model, lawa(2)),
        "SWAD": lambda: SWAD(it.model, converge=1),
        "FoldedSWA": lambda: FoldedSWA(it.model, iterations=4, cycle=1),
        "SwitchEMA": lambda: SwitchEMA(it.model, every=3),
        "SnapshotCollector": lambda: SnapshotCollector(it.model, scheduler),
    }[of]
    average = make()
    take = getattr(
        average, {"FoldedSWA": "step", "SwitchEMA": "step", "SnapshotCollector": "collect"}.get(of, "update")
    )
    before = pickle.dumps(average.state_dict())
    with (
        it.averages[0].averaged(),
        pytest.raises(ValueError, match=r"averaged\(\) of a RunningAverage shows.*leave that block first"),
    ):
        take()
    assert pickle.dumps(average.state_dict()) == before
    take()


def test_a_window_that_has_not_opened_does_not_show_another_average_as_the_last_model():
    it = Trained(WRAPPERS["lookahead"])
    swad = SWAD(it.model, converge=3)
    swad.update()
    with (
        it.averages[0].averaged(),
        pytest.warns(UserWarning, match="never opened"),
        pytest.raises(ValueError, match="taking a point"),
        swad.averaged(),
    ):
        pass


@pytest.mark.parametrize(
    "make", [lambda m: SwitchEMA(m, every=1), lambda m: FoldedSWA(m, iterations=4, cycle=1, folds=4)]
)
def test_a_procedure_that_may_not_write_counts_nothing(make):
    it = Trained(WRAPPERS["lookahead"])
    procedure = make(it.model)
    before, start = pickle.dumps(procedure.state_dict()), it.now()
    with (
        it.optimizer.averaged(),
        pytest.raises(ValueError, match=r"step\(\) was called while.*averaged\(\) of a Lookahead.*leave"),
    ):
        procedure.step()
    it.optimizer.eval()
    with pytest.raises(
        ValueError, match=r"step\(\) was called while.*eval\(\) of a Lookahead shows.*call its train\(\) first"
    ):
        procedure.step()
    it.optimizer.train()
    assert pickle.dumps(procedure.state_dict()) == before
    assert equal(it.now(), start)
    assert procedure.step()


def test_a_fold_that_cannot_begin_keeps_the_fold_before():
    model = nn.Linear(1, 1, bias=False)
    swa = FoldedSWA(model, iterations=4, cycle=1, folds=2)
    swa.step(), swa.step()
    before = pickle.dumps(swa.state_dict())
    model.register_buffer("new", torch.zeros(1))
    with pytest.raises(ValueError, match="unexpected: new"):
        swa.step()
    assert pickle.dumps(swa.state_dict()) == before


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("make", [lambda m: SwitchEMA(m, every=9), lambda m: FoldedSWA(m, iterations=4, cycle=1)])
def test_a_procedure_that_will_write_is_refused_in_the_body_of_a_loop_over_branches(make, batches):
    model = nn.Linear(1, 1, bias=False)
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=2, k=2)
    procedure, turns = make(model), 0
    for _ in optimizer.around([0, 1]) if batches else optimizer.around():
        turns += 1
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        with pytest.raises(
            ValueError, match=r"step\(\) was called in the body of a loop over around\(\) of a Lookaround"
        ):
            procedure.step()
        with pytest.raises(ValueError, match=r"write_back\(\) was called in the body"):
            RunningAverage(model, uniform()).write_back()
        model.weight.grad = None
    assert turns == (4 if batches else 2)
    procedure.step()


@pytest.mark.parametrize("inside", ["o", "a"])
def test_a_copy_into_the_model_is_refused_where_it_would_be_lost(inside):
    it = Trained(WRAPPERS["lookahead"])
    context = {"o": it.optimizer.averaged, "a": it.averages[1].averaged}[inside]
    with context():
        with pytest.raises(ValueError, match=r"copy_to\(\) of the same model was called while"):
            it.averages[0].copy_to(it.model)
        with pytest.raises(ValueError, match=r"write_back\(\) was called while"):
            it.averages[0].write_back()


@every_wrapper
@pytest.mark.parametrize("evaluating", [True, False])
@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_a_checkpoint_saved_inside_all_of_them_is_loaded_in_any_order(wrap, evaluating, order, tmp_path):
    saved = Trained(wrap)
    context = saved.optimizer.averaged()
    saved.optimizer.eval() if evaluating else context.__enter__()
    with saved.averages[0].averaged(), saved.averages[1].averaged():
        everything = [saved.optimizer, *saved.averages]
        torch.save([saved.model.state_dict(), *(each.state_dict() for each in everything)], tmp_path / "file")
    saved.optimizer.train() if evaluating else context.__exit__(None, None, None)
    states = torch.load(tmp_path / "file", weights_only=True)
    resumed = Trained(wrap, seed=1)
    resumed.model.load_state_dict(states[0])
    for i in order:
        [resumed.optimizer, *resumed.averages][i].load_state_dict(states[1 + i])
    assert equal(resumed.now(), saved.now())
    for each in (saved, resumed):
        each.steps = 4
        each.step(), each.averages[0].update(), each.step()
    assert equal(resumed.now(), saved.now())
    assert equal(resumed.seen(resumed.averages[0].averaged()), saved.seen(saved.averages[0].averaged()))


def test_training_weights_are_not_loaded_into_what_is_shown():
    it = Trained(WRAPPERS["lookahead"])
    with it.averages[0].averaged():
        state = it.averages[0].state_dict()
    with (
        it.optimizer.averaged(),
        pytest.raises(ValueError, match=r"load_state_dict\(\) of a state saved inside averaged\(\) was called"),
    ):
        it.averages[0].load_state_dict(state)


@every_wrapper
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda of: pickle.loads(pickle.dumps(of))], ids=["deepcopied", "pickled"]
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_copy_made_inside_all_of_them_is_outside_and_trains_on(wrap, again, order):
    it = Trained(wrap)
    with it.optimizer.averaged(), it.averages[0].averaged():
        parts = [it.model, it.averages[0], it.optimizer]
        copied = again([parts[i] for i in order])
    twin = copy.copy(it)
    twin.model, twin.averages, twin.optimizer = (
        part for _, part in sorted(zip(order, copied, strict=True), key=lambda x: x[0])
    )
    twin.averages = [twin.averages]
    assert equal(it.now(), twin.now())
    for each in (it, twin):
        each.step(), each.averages[0].update()
    assert equal(it.now(), twin.now())
    assert equal(it.seen(it.averages[0].averaged()), twin.seen(twin.averages[0].averaged()))


def test_what_a_block_re_estimates_stays_its_averages_under_others():
    it = Trained(WRAPPERS["lookahead"])
    first, second = it.averages
    start = it.now()
    batches = [[torch.randn(8, 2, generator=torch.Generator().manual_seed(i)) for _ in range(2)] for i in range(2)]
    with first.averaged():
        update_norm_stats(it.model, batches[0])
        mine = it.now()
        with second.averaged():
            first.state_dict()  # looks at what was re-estimated: it is not what the model holds now
            update_norm_stats(it.model, batches[1])
            theirs = it.now()
            with first.averaged():
                assert equal(it.now(), mine)
            assert equal(it.now(), theirs)
        assert equal(it.now(), mine)
    assert equal(it.now(), start)
    assert equal(it.seen(first.averaged()), mine)
    assert equal(it.seen(second.averaged()), theirs)
    assert not equal(mine, theirs)


def test_an_optimizer_that_is_deleted_in_evaluation_mode_shows_nothing_any_more():
    gc.collect()
    gc.disable()
    try:
        for wrap in (WRAPPERS["lookaround"], WRAPPERS["lookahead"], WRAPPERS["around a lookahead"]):
            it = Trained(wrap)
            it.optimizer.eval()
            with pytest.raises(ValueError, match="or delete it"):
                it.averages[0].copy_to(it.model)
            del it.optimizer
            it.averages[0].copy_to(it.model)
    finally:
        gc.enable()


def test_an_optimizer_that_is_deleted_beneath_a_block_gives_its_weights_back_after_it():
    it = Trained(WRAPPERS["lookahead"])
    start = it.now()
    context = it.optimizer.averaged()
    context.__enter__()
    with it.averages[0].averaged():
        context.__exit__(None, None, None)
        del it.optimizer, context
    assert equal(it.now(), start)


@every_wrapper
@pytest.mark.parametrize("given_point", [True, False])
def test_a_point_between_forward_and_backward_changes_no_gradient(wrap, given_point):
    it, twin = Trained(wrap), Trained(wrap)
    options = {"point": it.optimizer.averaged} if given_point else {}
    average, expected = RunningAverage(it.model, lawa(1), **options), it.seen(it.optimizer.averaged())
    losses = []
    for each in (it, twin):
        each.optimizer.zero_grad()
        losses.append(each.loss())
        if each is it:
            average.update()
            statistics = [b.clone() for b in it.model.buffers()]
        losses[-1].backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(it.model.parameters(), twin.model.parameters(), strict=True))
    assert equal(statistics, twin.model.buffers())
    weights = [i for i, name in enumerate(it.model.state_dict()) if "running" not in name and "num" not in name]
    seen = it.seen(average.averaged())
    assert all(torch.equal(seen[i], expected[i]) for i in weights)


def test_autograd_still_sees_what_is_written_by_others_between_forward_and_backward():
    it = Trained(WRAPPERS["lookahead"])
    loss = it.loss()
    it.averages[0].update()
    with torch.no_grad():
        it.model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_inner_wrapper_whose_outer_one_is_deleted_is_asked_for_its_average():
    it = Trained(WRAPPERS["around a lookahead"], steps=3)
    inner = it.optimizer.inner
    del it.optimizer
    assert inner.apart
    average = RunningAverage(it.model, lawa(1))
    average.update()
    with inner.averaged():
        expected = it.now()
    assert not equal(expected, it.now())
    assert equal(it.seen(average.averaged()), expected)


def test_a_copy_of_an_inner_wrapper_is_no_second_holder():
    it = Trained(WRAPPERS["around a lookahead"], steps=3)
    handles = [copy.copy(it.optimizer.inner)]
    for _ in range(4):
        it.step()
        handles.append(copy.copy(it.optimizer.inner))
        average = RunningAverage(it.model, lawa(1))
        average.update()
        assert equal(it.seen(average.averaged())[:2], it.seen(it.optimizer.averaged())[:2])


def test_the_average_that_is_written_back_is_computed_once(monkeypatch):
    it, calls = Trained(WRAPPERS["lookahead"], rules=(lawa(3), uniform())), []
    mean = RunningAverage._mean
    monkeypatch.setattr(RunningAverage, "_mean", lambda self, which: calls.append(which) or mean(self, which))
    it.averages[0].write_back()
    assert calls == [0]
