"""Running averages of models of every kind: precision, devices, tied weights, buffers, `AveragedModel`'s states, and errors."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lookaround.averaging import SWAD, RunningAverage, exponential, tail, uniform
from reference.walks import net, points, run, same, shown, walk, weighted


def test_bfloat16_weights_are_averaged_in_float32_and_move():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = RunningAverage(model, exponential(0.9999))
    average.update()
    nn.init.constant_(model.weight, 2.0)
    for _ in range(2000):
        average.update()
    expected = 2 - 0.9999**2000
    mean = average.state_dict()["averages"][0]["means"][0]["weight"]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.full((4, 4), expected), rtol=1e-4, atol=0.0)
    with average.averaged():
        assert model.weight.dtype == torch.bfloat16
        assert torch.equal(model.weight, torch.full((4, 4), expected, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_precisions_keep_their_own(dtype):
    model = nn.Linear(3, 3, dtype=dtype)
    first = model.weight.detach().clone()
    average = RunningAverage(model, uniform())
    average.update()
    nn.init.zeros_(model.weight)
    average.update()
    with average.averaged():
        torch.testing.assert_close(model.weight.detach(), first / 2)


def test_a_state_loads_into_another_dtype():
    _, average = run(uniform(), 3)
    other = RunningAverage(net(dtype=torch.bfloat16), uniform())
    other.load_state_dict(average.state_dict())
    for key, value in shown(other).items():
        assert torch.equal(value, shown(average)[key].to(value.dtype))
    double = RunningAverage(net(dtype=torch.float64), uniform())
    double.load_state_dict(average.state_dict())
    assert double.state_dict()["averages"][0]["means"][0]["3.weight"].dtype == torch.float64


def test_offloaded_averages_are_the_same_numbers():
    model, offloaded = run([uniform(), exponential(0.9)], 5, offload=True)
    _, plain = run([uniform(), exponential(0.9)], 5)
    before = copy.deepcopy(model.state_dict())
    assert same(shown(offloaded), shown(plain))
    assert same(shown(offloaded, 1), shown(plain, 1))
    assert same(model.state_dict(), before)


def test_a_model_moved_to_another_dtype_after_construction_is_followed():
    model = net()
    average = RunningAverage(model, uniform())
    average.update()
    first = copy.deepcopy(model.state_dict())
    model.double()
    average.update()
    for key, value in shown(average).items():
        torch.testing.assert_close(value, first[key].to(value.dtype))


def test_a_model_of_two_dtypes_may_become_one_of_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    average = RunningAverage(model, [uniform(), exponential(0.75)])
    for value, turn in ((1.0, model.float), (3.0, model.double), (5.0, model.bfloat16)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        average.update()
        turn()
    for which, expected in ((0, 3.0), (1, 2.375)):
        assert all(torch.equal(v, torch.full_like(v, expected)) for v in shown(average, which).values())


def test_tied_weights_are_averaged_once_and_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    average = RunningAverage(model, exponential(0.5))
    for value in (1.0, 2.0):
        nn.init.constant_(model[0].weight, value)
        average.update()
    assert set(average.state_dict()["averages"][0]["means"][0]) == {"0.weight"}
    with average.averaged():
        assert torch.equal(model[1].weight, torch.full((3, 3), 1.5))
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("new_style", [True, False])
@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.spectral_norm:FutureWarning")
def test_spectral_norm_vectors_are_copied(new_style):
    wrap = nn.utils.parametrizations.spectral_norm if new_style else nn.utils.spectral_norm
    model = wrap(nn.Linear(6, 5))
    average = RunningAverage(model, uniform())
    for _ in range(3):
        model(torch.randn(2, 6))
        average.update()
    vectors = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("_u", "_v"))}
    assert len(vectors) == 2
    averaged = shown(average)
    assert all(torch.equal(averaged[k], v) for k, v in vectors.items())


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("running_scale", torch.ones(2))
        self.register_buffer("cache", torch.ones(2), persistent=False)


def test_buffers_follow_what_they_are():
    model = Odd()
    average = RunningAverage(model, uniform())
    for value in (1.0, 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_scale.fill_(value)
            model.cache.fill_(value)
            model.seen += 1
            model.flag.fill_(True)
        average.update()
    model.seen += 1
    with average.averaged():
        assert model.weight == 2.0
        assert model.empty.shape == (0, 3)
        assert torch.equal(model.mask, torch.tensor([0.0, float("-inf")]))
        assert model.seen == 2
        assert model.flag
        assert torch.equal(model.running_scale, torch.full((2,), 2.0))
        assert torch.equal(model.cache, torch.full((2,), 3.0))
    assert model.seen == 3


def test_policies_of_buffers_can_be_overridden():
    _, average = run(uniform(), 3, buffers={"*running_*": "copy", "1.running_var": "average"})
    history, _ = points(3)
    got = shown(average)
    torch.testing.assert_close(got["1.running_mean"].double(), history[-1]["1.running_mean"])
    torch.testing.assert_close(got["1.running_var"].double(), weighted(history, [1, 1, 1])["1.running_var"])


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ({"1.runing_mean": "copy"}, "no buffer of the model matches '1.runing_mean'"),
        ({"0.weight": "copy"}, "no buffer"),
        ({"1.*": "average"}, "num_batches_tracked.*int64"),
        ({"1.running_mean": "mean"}, "'average' or 'copy', got 'mean'"),
    ],
)
def test_wrong_policies_are_errors(buffers, message):
    with pytest.raises(ValueError, match=message):
        RunningAverage(net(), uniform(), buffers=buffers)


def test_copy_to_writes_another_model_and_names_what_does_not_fit():
    _, average = run(uniform(), 3)
    other = net(seed=5, dtype=torch.bfloat16)
    average.copy_to(other)
    expected = shown(average)
    assert all(torch.equal(v, expected[k].to(v.dtype)) for k, v in other.state_dict().items())
    stranger = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Flatten(), nn.Linear(16, 3))
    before = copy.deepcopy(stranger.state_dict())
    with pytest.raises(ValueError, match=r"missing: 1\.weight.*3\.weight is \(3, 16\) instead of \(2, 16\)"):
        average.copy_to(stranger)
    assert same(stranger.state_dict(), before)


def test_copies_and_pickles_are_independent():
    model, average = run(uniform(), 3)
    twin = copy.deepcopy(average)
    expected = shown(average)
    next(walk(model, 1))
    average.update()
    assert same(shown(twin), expected)
    assert not same(shown(average), expected)


def points_of_1_and_3(make):
    """A model that holds 8, and its average of 1 and 3."""
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("seen", torch.tensor(0))
    average = make(model)
    for value in (1.0, 3.0, 8.0):
        nn.init.constant_(model.weight, value)
        model.seen += 1
        if value < 8:
            average.update()
    return model, average


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("take", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("offload", [False, True])
def test_a_copy_made_inside_is_outside(take, offload):
    model, average = points_of_1_and_3(lambda m: RunningAverage(m, uniform(), offload=offload))
    with average.averaged():
        twin = take(average)
        assert (model.weight, model.seen) == (2.0, 2)
    assert (model.weight, model.seen) == (8.0, 3)
    assert (twin.model.weight, twin.model.seen) == (8.0, 3)
    assert "training" not in twin.state_dict()
    twin.update()
    with twin.averaged():
        assert (twin.model.weight, twin.model.seen) == (4.0, 3)
    assert twin.model.weight == 8.0


@pytest.mark.parametrize("take", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_copy_of_a_model_that_holds_its_average(take, depth):
    model, average = points_of_1_and_3(lambda m: RunningAverage(m, uniform()))
    model.average = average
    with average.averaged(), average.averaged() if depth > 1 else nullcontext():
        twin = take(model)
        assert model.weight == 2.0
    assert twin.average.model is twin
    assert (twin.weight, twin.seen) == (8.0, 3)
    twin.average.update()
    assert average.count == 2
    with twin.average.averaged():
        assert twin.weight == 4.0


@pytest.mark.parametrize("take", COPIES.values(), ids=COPIES)
def test_a_copy_of_swad_made_inside_is_outside(take):
    model, average = points_of_1_and_3(lambda m: SWAD(m, converge=1))
    average.evaluated(1.0)
    with average.averaged():
        twin = take(average)
    assert (model.weight, twin.model.weight) == (8.0, 8.0)
    twin.update()
    with twin.averaged():
        assert twin.model.weight == 4.0


@pytest.mark.parametrize(("rule", "avg_fn"), [(uniform(), None), (exponential(0.9), get_ema_multi_avg_fn(0.9))])
@pytest.mark.parametrize("switch", [0, 1, 4])
def test_people_move_from_averaged_model_and_back(rule, avg_fn, switch):
    model = net()
    alone = AveragedModel(model, multi_avg_fn=avg_fn)
    ours = RunningAverage(model, rule)
    steps = walk(model, 9)
    for _ in range(switch):
        next(steps)
        alone.update_parameters(model)
    ours.load_averaged_model_state(alone.state_dict())
    assert ours.count == switch
    for _ in range(3):
        next(steps)
        alone.update_parameters(model)
        ours.update()
    back = AveragedModel(net(seed=4), multi_avg_fn=avg_fn)
    back.load_state_dict(ours.averaged_model_state())
    for _ in steps:
        alone.update_parameters(model)
        back.update_parameters(model)
    assert back.n_averaged == alone.n_averaged == 9
    for (name, a), b in zip(back.module.named_parameters(), alone.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def test_averaged_model_states_that_do_not_fit_are_errors():
    model = net()
    state = AveragedModel(model).state_dict()
    with pytest.raises(ValueError, match="cannot fill"):
        RunningAverage(model, tail(0.5)).load_averaged_model_state(state)
    with pytest.raises(ValueError, match="cannot fill"):
        RunningAverage(model, [uniform(), uniform()]).load_averaged_model_state(state)
    with pytest.raises(ValueError, match="n_averaged"):
        RunningAverage(model, uniform()).load_averaged_model_state(model.state_dict())
    with pytest.raises(ValueError, match="unexpected"):
        RunningAverage(nn.Linear(2, 2), uniform()).load_averaged_model_state(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(1.0), r"\[0, 1\), got 1.0"),
        (lambda: exponential(-0.1), "got -0.1"),
        (lambda: exponential(0.9, warmup=0), "positive power"),
        (lambda: exponential(0.9, warmup=1, bias_correction=True), "choose one"),
        (lambda: tail(0.0), r"\(0, 1\], got 0.0"),
        (lambda: tail(1.5), "got 1.5"),
        (lambda: tail(0.5, total=0), "total must be a whole number of at least 1, got 0; leave it out"),
        (lambda: tail(0.5, total=2.5), "total must be a whole number of at least 1, got 2.5"),
        (lambda: RunningAverage(net(), []), "got \\[\\]"),
        (lambda: RunningAverage(net(), 0.9), "got 0.9"),
        (lambda: RunningAverage(net(), uniform()).copy_to(net()), "no point"),
        (lambda: run(uniform(), 1)[1].copy_to(net(), which=1), "which=1"),
    ],
)
def test_errors_name_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_replaced_module_is_an_error_and_not_averaged_on():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2))
    average = RunningAverage(model, uniform())
    average.update()
    model[1] = nn.Tanh()  # holds no tensor
    average.update()
    model[2] = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match=r"the module that held '2\.weight' has been replaced; build a new average"):
        average.update()
    assert average.count == 2
