"""Norm statistics: exact pooled moments for any split into batches, and everything else as it was."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn

from lookaround.averaging import RunningAverage, exponential, update_norm_stats
from lookaround.averaging.moments import Moments


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.BatchNorm1d(6, affine=False),
    )


def data(n, seed=1):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3 + 100


def pooled(values):
    """Mean and unbiased variance of each channel over everything, in float64."""
    rows = values.double().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1)


def inputs_in_batches(model, layer, batches):
    """What ``layer`` sees when norm layers alone are in training mode, written out with plain hooks."""
    model, seen = copy.deepcopy(model).eval(), []
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.train()
    model[layer].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for batch in batches:
        model(batch)
    return torch.cat(seen)


def check(layer, values, tolerance=1e-5):
    mean, variance = pooled(values)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [[40], [8] * 5, [31, 7, 2]])
def test_statistics_are_the_pooled_moments_of_each_layers_inputs(sizes):
    model, batches = deep(), data(40).split(sizes)
    expected = {layer: inputs_in_batches(model, layer, batches) for layer in (1, 5, 8)}
    update_norm_stats(model, batches)
    for layer, values in expected.items():
        check(model[layer], values)
        assert model[layer].num_batches_tracked == len(sizes)


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.floats(-1000, 1000))
@settings(max_examples=25, deadline=None)
def test_the_first_layer_is_exact_for_any_split(sizes, shift):
    values = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(sum(sizes))) + shift
    norm = nn.BatchNorm1d(3)
    update_norm_stats(norm, values.split(sizes))
    check(norm, values)


@pytest.mark.parametrize("sizes", [[40], [20, 20], [31, 7, 2]])
def test_exact_is_one_pass_over_the_whole_data_set_for_all_layers(sizes):
    model = deep()
    reference = copy.deepcopy(model).double().eval()
    for layer in (1, 5, 8):
        seen = []
        hook = reference[layer].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        reference(data(40).double())
        hook.remove()
        reference[layer].running_mean, reference[layer].running_var = pooled(seen[0])
    update_norm_stats(model, data(40).split(sizes), exact=True)
    for layer in (1, 5, 8):
        for name in ("running_mean", "running_var"):
            value, expected = getattr(model[layer], name).double(), getattr(reference[layer], name)
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval()(data(40)).double(), reference(data(40).double()), rtol=1e-4, atol=1e-4)


def test_it_is_more_than_the_mean_of_batch_variances():
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0], [14.0]])]
    ours, theirs = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    update_norm_stats(ours, batches)
    update_bn(batches, theirs)
    assert ours.running_mean.item() == pytest.approx(7.6)
    assert ours.running_var.item() == pytest.approx(38.8)
    assert theirs.running_mean.item() == pytest.approx(6.5)
    assert theirs.running_var.item() == pytest.approx(3.0)


def test_equal_batches_give_the_means_of_update_bn():
    ours, theirs = deep(), deep()
    theirs[3].p = 0.0
    update_norm_stats(ours, data(32).split(8))
    update_bn(data(32).split(8), theirs)
    for layer in (1, 5, 8):
        torch.testing.assert_close(ours[layer].running_mean, theirs[layer].running_mean, rtol=1e-4, atol=1e-4)


def test_instance_norm_gets_the_mean_over_instances():
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    values = data(10)
    update_norm_stats(norm, values.split([7, 3]))
    torch.testing.assert_close(norm.running_mean, values.flatten(2).mean(2).mean(0))
    torch.testing.assert_close(norm.running_var, values.flatten(2).var(2).mean(0))
    single = nn.InstanceNorm2d(3, track_running_stats=True)
    update_norm_stats(single, list(values))
    torch.testing.assert_close(single.running_mean, norm.running_mean)
    torch.testing.assert_close(single.running_var, norm.running_var)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_modes_and_momentum_stay_and_failure_leaves_the_statistics(fail, exact):
    model = deep().train()
    model[0].eval()
    model[5].eval()
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    batches = [*data(16).split(8), torch.zeros(1, 1, 1, 1)] if fail else data(16).split(8)
    if fail:
        with pytest.raises(RuntimeError):
            update_norm_stats(model, batches, exact=exact)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    else:
        update_norm_stats(model, batches, exact=exact)
        assert not torch.equal(model[5].running_mean, before["5.running_mean"])
    assert [m.training for m in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, None)
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_dropout_is_off_and_no_gradient_is_recorded():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append((torch.is_grad_enabled(), self.training, float((x == 0).float().mean())))
            return x

    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9), Watch()).train()
    update_norm_stats(model, [torch.randn(8, 4)])
    assert seen == [(False, False, 0.0)]


def test_any_batch_structure_through_forward():
    model = nn.BatchNorm1d(2)
    values = torch.randn(12, 2)
    batches = [{"x": part} for part in values.split(5)]
    update_norm_stats(model, batches, lambda batch: model(batch["x"]))
    check(model, values)
    with pytest.raises(TypeError, match=r"got dict.*forward="):
        update_norm_stats(model, batches)
    labelled = [(part, torch.zeros(len(part))) for part in values.split(4)]
    update_norm_stats(model, labelled)
    check(model, values)


def test_a_batch_of_one_sample_counts_as_one_where_the_layer_allows_it():
    norm = nn.BatchNorm2d(3)
    values = data(5)
    update_norm_stats(norm, values.split([4, 1]))
    check(norm, values)


def test_layers_without_statistics_and_unused_layers_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    update_norm_stats(model, [torch.randn(4, 2)])

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.used(x)

    partly = Unused()
    update_norm_stats(partly, [torch.randn(4, 2) + 5], exact=True)
    assert torch.equal(partly.unused.running_mean, torch.zeros(2))
    assert partly.used.running_mean.min() > 3


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="no batches"):
        update_norm_stats(deep(), [])
    with pytest.raises(ValueError, match="not an iterator"):
        update_norm_stats(deep(), iter(data(8).split(4)), exact=True)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sizes", [[0, 8, 12], [8, 0, 0, 12], [8, 12, 0]])
def test_empty_batches_are_skipped(sizes, exact):
    model, plain = deep(), deep()
    update_norm_stats(model, data(20).split(sizes), exact=exact)
    update_norm_stats(plain, data(20).split([8, 12]), exact=exact)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True)])
def test_empty_batches_of_other_structures_are_skipped(norm, exact):
    batches = [{"x": part} for part in data(9).split([4, 0, 5])]
    model, plain = copy.deepcopy(norm), copy.deepcopy(norm)
    update_norm_stats(model, batches, lambda batch: model(batch["x"]), exact=exact)
    update_norm_stats(plain, data(9).split([4, 5]), exact=exact)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.running_mean.isfinite().all()


@pytest.mark.parametrize("exact", [False, True])
def test_empty_batches_alone_are_no_batches(exact):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True))
    before = copy.deepcopy(model.state_dict())
    for forward in (None, model):
        with pytest.raises(ValueError, match="no batches with samples"):
            update_norm_stats(model, [data(0), data(0)], forward, exact=exact)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("exact", [False, True])
def test_a_layer_that_sees_no_samples_keeps_its_statistics(exact):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.InstanceNorm2d(3, track_running_stats=True) for _ in range(2))

        def forward(self, x):
            return self.left(x[:0]), self.right(x)

    model = Routed()
    modes = [m.training for m in model.modules()]
    update_norm_stats(model, data(8).split(4), exact=exact)
    assert torch.equal(model.left.running_mean, torch.zeros(3))
    assert torch.equal(model.left.running_var, torch.ones(3))
    torch.testing.assert_close(model.right.running_mean, data(8).flatten(2).mean(2).mean(0))
    assert [m.training for m in model.modules()] == modes


def test_autocast_and_low_precision_inputs_are_pooled_in_full_precision():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    values = torch.randn(64, 4) + 3
    with torch.autocast("cpu", torch.bfloat16):
        for exact in (False, True):
            update_norm_stats(model, values.split(16), exact=exact)
            check(model[1], model[0](values), tolerance=1e-6)
            assert model[0](values).dtype == torch.bfloat16
    low = nn.BatchNorm1d(4).to(torch.bfloat16)
    update_norm_stats(low, values.bfloat16().split(16))
    mean, variance = pooled(values.bfloat16())
    assert torch.equal(low.running_mean, mean.bfloat16())
    assert torch.equal(low.running_var, variance.bfloat16())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_followed():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    values = torch.randn(24, 4)
    compiled(values)
    update_norm_stats(compiled, values.split(6))
    check(model[1], model[0](values))


def test_a_layer_used_twice_pools_both_uses():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            self.norm(x)
            return self.norm(x + 10)

    values = torch.randn(9, 2)
    for exact in (False, True):
        model = Twice()
        update_norm_stats(model, values.split(3), exact=exact)
        check(model.norm, torch.cat([values, values + 10]))
        assert model.norm.num_batches_tracked == 6


class Loop(nn.Module):
    """Norm, a layer, the same norm again: what the second call sees depends on what the first normalises with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.norm, self.linear, self.last = nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(self.norm(self.linear(self.norm(x)).relu()))


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_exact_of_a_layer_used_twice_does_not_depend_on_the_cut(sizes):
    values = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(sum(sizes))) * 4 + 2
    model = Loop()
    update_norm_stats(model, values.split(sizes), exact=True)

    def normalised(x):
        mean, variance = pooled(x)
        return (x - mean) / (variance + 1e-5).sqrt()

    reference = copy.deepcopy(model).double()
    first = values.double()
    second = reference.linear(normalised(first)).relu()
    check(model.norm, torch.cat([first, second]).detach(), tolerance=1e-4)
    check(model.last, normalised(second).detach(), tolerance=1e-4)
    assert model.norm.num_batches_tracked == 2 * len(sizes)


@pytest.mark.parametrize("exact", [False, True])
def test_a_last_batch_of_one_sample_counts_as_one(exact):
    model, norm = Loop(), nn.BatchNorm1d(3)
    values = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)) + 7
    update_norm_stats(norm, values.split([5, 3, 1]), exact=exact)
    check(norm, values)
    assert norm.num_batches_tracked == 3
    update_norm_stats(model, values.split([8, 1]), exact=exact)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    # By default the sample is normalised, for the layers behind, with what the layer has pooled so far, itself included.
    mean, variance = pooled(values)
    sequence = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    update_norm_stats(sequence, values.split([8, 1]))
    first = (values[:8].double() - values[:8].double().mean(0)) / (
        values[:8].double().var(0, correction=0) + 1e-5
    ).sqrt()
    last = (values[8:].double() - mean) / (variance + 1e-5).sqrt()
    check(sequence[1], torch.cat([first, last]))


def test_single_samples_alone_have_no_variance_and_say_so():
    norm = nn.Sequential(nn.BatchNorm1d(3))
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match=r"norm layer '0' got a batch of a single value.*two or more samples first"):
        update_norm_stats(norm, torch.randn(5, 3).split([1, 4]))
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    assert "forward" not in norm[0].__dict__


class Direct(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.norm, self.call = nn.BatchNorm1d(3), call

    def forward(self, x):
        return self.call(self.norm, x)


@pytest.mark.parametrize("exact", [False, True])
def test_a_layer_called_by_its_forward_is_seen(exact):
    model = Direct(lambda norm, x: norm.forward(x))
    values = torch.randn(12, 3) + 5
    update_norm_stats(model, values.split(4), exact=exact)
    check(model.norm, values)
    own = model.norm.forward = lambda x: nn.BatchNorm1d.forward(model.norm, x + 1)
    update_norm_stats(model, values.split(4), exact=exact)
    assert model.norm.forward is own


@pytest.mark.parametrize(
    "call",
    [
        lambda norm, x: nn.BatchNorm1d.forward(norm, x),
        lambda norm, x: nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=norm.training),
    ],
)
def test_a_layer_that_runs_unseen_is_not_skipped_in_silence(call):
    model = nn.Sequential(nn.BatchNorm1d(3), Direct(call))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'1\.norm' moved without a call"):
        update_norm_stats(model, torch.randn(8, 3).split(4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("compile", [torch.jit.script, lambda m: torch.jit.trace(m.eval(), torch.randn(4, 3))])
def test_a_layer_inside_torch_jit_is_refused_by_name(whole, compile):
    part = compile(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    model, name = (part, "1") if whole else (nn.Sequential(nn.BatchNorm1d(3), part), r"1\.1")
    with pytest.raises(ValueError, match=rf"norm layer '{name}' was compiled by torch\.jit"):
        update_norm_stats(model, torch.randn(8, 3).split(4))


def test_moments_are_accurate_far_from_zero():
    values = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0)).double() + 1e4
    moments = [Moments.of(part, [0]) for part in values.float().split(30_000)]
    total = moments[0]
    for part in moments[1:]:
        total = total.merge(part)
    torch.testing.assert_close(total.unbiased_variance(), values.float().double().var(0), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(total.mean, values.float().double().mean(0), rtol=1e-9, atol=0.0)


def _worker(rank, path, sizes, exact):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    model = deep()
    first = sum(sizes[0])
    mine = data(40)[:first] if rank == 0 else data(40)[first:]
    update_norm_stats(nn.parallel.DistributedDataParallel(model), mine.split(sizes[rank]), exact=exact)
    torch.save(model.state_dict(), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_pool_their_moments(tmp_path):
    sizes = ([10, 5], [15, 7, 3])
    torch.multiprocessing.spawn(_worker, (str(tmp_path), sizes, True), nprocs=2)
    alone = deep()
    update_norm_stats(alone, data(40).split([10, 5, 15, 7, 3]), exact=True)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-5)


def test_statistics_re_estimated_inside_averaged_leave_the_training_and_the_means_alone():
    model = deep()
    average = RunningAverage(model, exponential(0.9))
    for step in range(3):
        model.train()(data(12, seed=step))
        with torch.no_grad():
            model[0].weight += 0.1
        average.update()
    training, kept = copy.deepcopy(model.state_dict()), copy.deepcopy(average.state_dict())
    plain = deep()
    average.copy_to(plain)
    update_norm_stats(plain, data(30).split(10))
    with average.averaged():
        update_norm_stats(model, data(30).split(10))
        assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, training[k]) for k, v in model.state_dict().items())
    means = average.state_dict()["averages"][0]["means"][0]
    assert all(torch.equal(v, kept["averages"][0]["means"][0][k]) for k, v in means.items())
