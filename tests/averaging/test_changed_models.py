"""A model that is no longer made as it was when its average was built: refused before anything changes."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lookaround.averaging import SWAD, RunningAverage, SnapshotCollector, uniform


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model.register_buffer("table", torch.ones(2))
    model[2].weight = model[0].weight
    return model


def add(model):
    model.append(nn.Linear(2, 1))


def register(model):
    model.register_buffer("late", torch.zeros(3))


def grow(model):
    model.table = torch.ones(3)


def untie(model):
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


def tie(model):
    model[2].bias = model[0].bias


def broadcast(model):
    model[0].bias.data = torch.zeros(1)


def widen(model):
    model[0].weight.data = torch.zeros(3, 2)


def lose(model):
    model.table = None


def persist(model):
    model._non_persistent_buffers_set.add("table")


def sparsify(model):
    model[2].bias = nn.Parameter(torch.ones(2).to_sparse())


CHANGES = {
    add: r"unexpected: 3\.weight, 3\.bias",
    register: "unexpected: late",
    grow: r"table is \(3,\) instead of \(2,\)",
    untie: r"2\.weight is \(2, 2\) instead of \(2, 2\), tied to 0\.weight",
    tie: r"2\.bias is \(2,\), tied to 0\.bias instead of \(2,\)",
    broadcast: r"0\.bias is \(1,\) instead of \(2,\)",
    widen: r"0\.weight is \(3, 2\) instead of \(2, 2\)",
    lose: "no longer has a tensor 'table'",
    persist: "missing: table",
    sparsify: r"'2\.bias' is sparse",
}


@pytest.mark.parametrize("make", [lambda m: RunningAverage(m, uniform()), SWAD], ids=["running", "swad"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.filterwarnings("ignore:the SWAD window never opened")
def test_a_changed_model_is_refused_and_nothing_changes(make, change, tmp_path):
    model = net()
    average = make(model)
    average.update()
    before = copy.deepcopy(average.state_dict())
    change(model)
    after = copy.deepcopy(model.state_dict())

    def enter():
        with average.averaged():
            pass

    for use in (average.update, enter, lambda: average.export(tmp_path / "a"), lambda: average.load_state_dict(before)):
        with pytest.raises(ValueError, match=CHANGES[change]):
            use()
    assert list(tmp_path.iterdir()) == []
    assert str(average.state_dict()) == str(before)
    assert str(model.state_dict()) == str(after)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_snapshot_of_a_changed_model_is_refused_and_nothing_changes(change):
    model = net()
    scheduler = CosineAnnealingWarmRestarts(torch.optim.SGD(model.parameters(), lr=0.1), T_0=1)
    collector = SnapshotCollector(model, scheduler)
    scheduler.optimizer.step()
    scheduler.step()
    before = copy.deepcopy(collector.state_dict())
    change(model)
    for use in (collector.collect, collector.step, collector.step):
        with pytest.raises(ValueError, match=CHANGES[change]):
            use()
    assert str(collector.state_dict()) == str(before)


def test_what_does_not_change_the_model_goes_on():
    model = net()
    average = RunningAverage(model, uniform())
    average.update()
    model.double()
    model.to("cpu")
    model.register_buffer("cache", torch.zeros(1), persistent=False)
    model[1].weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))  # another tensor in the same place
    average.update()
    with average.averaged():
        assert model[1].weight.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.ones(2, 2).to_sparse(), "is sparse"),
        (lambda: torch.ones(2, 2, dtype=torch.complex64).conj(), "conjugated"),
        (lambda: torch.ones(2, 2, dtype=torch.complex64).conj().imag, "negated"),
    ],
)
def test_tensors_that_cannot_be_averaged_in_place_are_refused_by_name(make, words):
    model = nn.Module()
    model.odd = nn.Parameter(make())
    with pytest.raises(ValueError, match=f"'odd' is .*{words}|'odd'.*{words}"):
        RunningAverage(model, uniform())


def test_a_lazy_model_is_refused_until_it_has_shapes():
    model = nn.LazyLinear(2)
    with pytest.raises(ValueError, match=r"'weight' has no shape yet; run the model once"):
        RunningAverage(model, uniform())
    model(torch.ones(1, 3))
    RunningAverage(model, uniform()).update()


def test_a_point_taken_in_inference_mode_goes_on_outside():
    model = nn.Linear(1, 1, bias=False)
    average = RunningAverage(model, uniform())
    swad = SWAD(model, converge=1)
    with torch.inference_mode():
        nn.init.constant_(model.weight, 1.0)
        average.update()
        swad.update()
        state = average.state_dict()
        loaded = RunningAverage(model, uniform())
        loaded.load_state_dict(state)
    nn.init.constant_(model.weight, 3.0)
    for each in (average, loaded, swad):
        each.update()
    swad.evaluated(1.0)
    for each in (average, loaded, swad):
        with each.averaged():
            assert model.weight.item() == 2.0
    model.weight.requires_grad_()
    assert model.weight.sum().backward() is None


def test_a_model_of_inference_tensors_is_averaged():
    with torch.inference_mode():
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 4.0)
    average = RunningAverage(model, uniform())
    average.update()
    with torch.inference_mode():
        nn.init.constant_(model.weight, 8.0)
    average.update()
    with torch.inference_mode(), average.averaged():
        assert model.weight.item() == 6.0
