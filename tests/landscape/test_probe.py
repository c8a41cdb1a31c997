"""A probe measures what the model itself would show at a point, in every choice of norm statistics, and leaves it alone."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lookaround.averaging import update_norm_stats
from lookaround.landscape import Plane, Probe, flatten
from lookaround.landscape.norms import reestimate
from lookaround.tasks.vision.models import build_model


@pytest.fixture
def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(n, 3, 16, 16), torch.randint(10, (n,))) for n in (12, 7)]


def networks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [build_model("resnet9", classes=10, width=4) for _ in range(count)]


def plainly(model: nn.Module, weights: torch.Tensor, data: list, statistics: list | None) -> tuple[float, float]:
    """Load the weights into a copy, re-estimate its statistics on request, evaluate."""
    model = copy.deepcopy(model).eval()
    nn.utils.vector_to_parameters(weights, model.parameters())
    if statistics is not None:
        update_norm_stats(model, statistics)
    with torch.no_grad():
        outputs = torch.cat([model(x) for x, _ in data])
    targets = torch.cat([y for _, y in data])
    return F.cross_entropy(outputs, targets).item(), 100 * (outputs.argmax(1) == targets).float().mean().item()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["fixed", "reestimate", "reestimate on others"])
def test_points_are_measured_as_the_naive_loop_measures_them(data, mode: str, channels_last: bool) -> None:
    anchors = networks(3)
    plane = Plane.through(*anchors)
    others = [torch.randn(9, 3, 16, 16), torch.randn(5, 3, 16, 16)]
    statistics = {"fixed": None, "reestimate": [x for x, _ in data], "reestimate on others": others}[mode]
    probe = Probe(
        anchors[0],
        data,
        norm_stats=mode.split()[0],
        norm_batches=others if "others" in mode else None,
        channels_last=channels_last,
    )
    probe.span(plane.rows)
    for place in [(0.0, 0.0), (3.0, -2.0), plane.anchors[2]]:
        probe.move(plane.weights(*place))
        expected = plainly(anchors[0], plane.point(*place), data, statistics)
        assert probe.measure() == pytest.approx(expected, rel=2e-5)


def test_the_modes_differ_and_say_which_they_are(data) -> None:
    model = networks(1)[0]
    fixed, fresh = (Probe(model, data, norm_stats=mode) for mode in ("fixed", "reestimate"))
    for probe in (fixed, fresh):
        probe.move_to(flatten(model))
    assert abs(fixed.measure().loss - fresh.measure().loss) > 1e-3
    assert fixed.norm_note == "norm statistics fixed"
    assert fresh.norm_note == "norm statistics re-estimated on 19 samples at every point"
    assert Probe(nn.Linear(2, 2), [(torch.ones(1, 2), torch.ones(1))]).norm_note == "no norm statistics"


def test_neither_model_nor_gradients_nor_modes_change_even_when_measuring_raises(data) -> None:
    model = networks(1)[0].train()
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    pointers = [p.data_ptr() for p in model.parameters()]

    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    for criterion in (F.cross_entropy, broken):
        probe = Probe(model, data, criterion=criterion)
        probe.move_to(flatten(model) + 1)
        if criterion is broken:
            with pytest.raises(RuntimeError, match="broken"):
                probe.measure()
        else:
            probe.measure()
    assert [m.training for m in model.modules()] == modes
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad and p.grad is not None and bool((p.grad == 1).all()) for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_failed_measurement_leaves_the_next_one_right(data) -> None:
    model, fail = networks(1)[0], [True]

    def once(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if fail:
            fail.pop()
            raise RuntimeError("once")
        return F.cross_entropy(outputs, targets, reduction="sum")

    probe, sound = Probe(model, data, criterion=once), Probe(model, data)
    for each in (probe, sound):
        each.move_to(flatten(model))
    with pytest.raises(RuntimeError, match="once"):
        probe.measure()
    assert probe.measure() == sound.measure()


def test_tied_and_low_precision_parameters_move_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2).bfloat16())
    model[1].weight = model[0].weight
    inner = nn.Sequential(model[0], model[1])
    probe = Probe(model, [(torch.ones(1, 2), torch.zeros(1, dtype=torch.long))])
    probe.move_to(torch.arange(10.0))
    assert probe.model[0].weight is probe.model[1].weight
    assert probe.model[1].weight.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert probe.model[2].weight.dtype is torch.bfloat16
    assert probe.model[2].weight.tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert not torch.equal(inner[0].weight, probe.model[0].weight)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)])
def test_pooled_statistics_are_those_of_update_norm_stats(norm: nn.Module) -> None:
    torch.manual_seed(0)
    twice = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(twice, norm, nn.ReLU(), twice, nn.BatchNorm2d(3), nn.Dropout(0.5), norm)
    batches = [3 + 2 * torch.randn(n, 3, 6, 6) for n in (5, 2, 9)]
    expected, found = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    update_norm_stats(expected, batches)
    reestimate(found, batches)
    for name, buffer in expected.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
    assert not any(module.training for module in found.modules())


def test_what_cannot_be_measured_is_refused(data) -> None:
    model = networks(1)[0]
    with pytest.raises(ValueError, match="'reestimate' or 'fixed', got 'copy'"):
        Probe(model, data, norm_stats="copy")
    with pytest.raises(ValueError, match="no batches"):
        Probe(model, [])
    with pytest.raises(ValueError, match="no norm_batches"):
        Probe(model, data, norm_batches=[])
    with pytest.raises(ValueError, match="geometry is of 5 weights"):
        Probe(model, data).span(torch.zeros(1, 5))


class Loop(nn.Module):
    """Norm, a layer, the same norm again."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.last = nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.linear(self.norm(x)).relu()))


class Direct(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.norm, self.call = nn.BatchNorm1d(3), call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.norm, x)


@pytest.mark.parametrize("sizes", [[8, 1], [5, 0, 3, 1], [4, 1, 4], [1, 8], [9]])
@pytest.mark.parametrize(
    "make",
    [
        Loop,
        lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)),
        lambda: Direct(lambda norm, x: norm.forward(x)),
        lambda: nn.Sequential(nn.BatchNorm1d(3), Direct(lambda norm, x: norm.forward(input=x))),
    ],
)
def test_every_cut_and_every_way_of_a_call_gives_what_update_norm_stats_gives(make, sizes: list[int]) -> None:
    """One sample at the end, none in the middle, a layer used twice, a layer called by its forward."""
    torch.manual_seed(0)
    model = make()
    batches = (4 * torch.randn(9, 3) + 2).split(sizes)
    expected, found = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    if sizes[0] == 1:
        for refuses in (lambda: update_norm_stats(expected, batches), lambda: reestimate(found, batches)):
            with pytest.raises(ValueError, match="two or more samples first"):
                refuses()
    else:
        update_norm_stats(expected, [b for b in batches if len(b)])
        reestimate(found, batches)
        for name, buffer in expected.named_buffers():
            if "num_batches" not in name:
                torch.testing.assert_close(found.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)
    assert not any(module.training or "forward" in vars(module) for module in found.modules())


@pytest.mark.parametrize(
    "call",
    [
        lambda norm, x: nn.BatchNorm1d.forward(norm, x),
        lambda norm, x: F.batch_norm(x, norm.running_mean, norm.running_var, training=norm.training),
    ],
)
def test_a_layer_that_runs_unseen_is_not_skipped_in_silence(call) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), Direct(call)).eval()
    with pytest.raises(ValueError, match=r"'1\.norm' moved without a call"):
        reestimate(model, torch.randn(8, 3).split(4))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("norm_stats", ["fixed", "reestimate"])
def test_what_torch_jit_has_compiled_is_refused_before_any_point_is_measured(norm_stats: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))))
    data = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match=r"'1' was compiled by torch\.jit"):
        Probe(model, data, norm_stats=norm_stats)
    with pytest.raises(ValueError, match=r"norm layer '1\.1' was compiled by torch\.jit"):
        reestimate(model, [data[0][0]])


def test_a_point_of_infinite_weights_does_not_spoil_the_next() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    probe = Probe(model, [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))])
    probe.move_to(flatten(model))
    expected = probe.measure()
    probe.move_to(flatten(model) * float("inf"))
    assert probe.measure().loss != probe.measure().loss  # NaN
    probe.move_to(flatten(model))
    assert probe.measure() == expected


def test_an_unbatched_input_of_instance_norm_is_one_instance() -> None:
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    batches = [torch.randn(3, 5), torch.randn(2, 3, 5), torch.randn(3, 5)]
    expected, found = copy.deepcopy(norm).train(), copy.deepcopy(norm).eval()
    update_norm_stats(expected, batches)
    reestimate(found, batches)
    torch.testing.assert_close(found.running_mean, expected.running_mean)
    torch.testing.assert_close(found.running_var, expected.running_var)


class Frozen(nn.BatchNorm1d):
    """Normalises with what it has, and leaves that alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Slow(nn.BatchNorm1d):
    """Moves its statistics by a tenth, whatever its momentum is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


@pytest.mark.parametrize("kind", [Frozen, Slow])
def test_a_batch_norm_with_a_forward_of_its_own_is_measured_at_its_input(kind: type[nn.BatchNorm1d]) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(n, 3) * 3 + 5 for n in (8, 5)]
    found, expected = kind(3).eval(), nn.BatchNorm1d(3).eval()
    reestimate(found, batches)
    update_norm_stats(expected, batches)
    torch.testing.assert_close(found.running_mean, expected.running_mean)
    torch.testing.assert_close(found.running_var, expected.running_var)


class ByLength(nn.Module):
    """Reshapes its inputs by how many there are, as no empty batch can be."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.reshape(len(x), -1))


def test_empty_batches_are_skipped_whatever_a_model_makes_of_its_inputs() -> None:
    batches = [torch.randn(5, 3, 1), torch.zeros(0, 3, 1), torch.randn(3, 3, 1)]
    found, expected = ByLength().eval(), ByLength().eval()
    reestimate(found, batches)
    update_norm_stats(expected, batches)
    torch.testing.assert_close(found.norm.running_mean, expected.norm.running_mean)
    torch.testing.assert_close(found.norm.running_var, expected.norm.running_var)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)])
@pytest.mark.parametrize("exact", [False, True])
def test_statistics_of_16_bits_are_rounded_once_and_not_in_every_batch(norm: nn.Module, exact: bool) -> None:
    """Of batches whose means differ by less than bfloat16 can tell at that height."""
    norm = copy.deepcopy(norm).bfloat16().eval()
    generator = torch.Generator().manual_seed(0)
    values = (100 + torch.randn(64, 2, 16, generator=generator)).bfloat16()
    if isinstance(norm, nn.BatchNorm1d):
        mean, variance = values.double().mean((0, 2)), values.double().transpose(0, 1).flatten(1).var(1)
    else:
        mean, variance = values.double().mean((0, 2)), values.double().var(2).mean(0)
    for estimate in (reestimate, lambda model, batches: update_norm_stats(model, batches, exact=exact)):
        norm.reset_running_stats()
        estimate(norm, [*values.split(4), values[:0]])
        assert torch.equal(norm.running_mean, mean.bfloat16())
        assert torch.equal(norm.running_var, variance.bfloat16())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_the_statistics_as_they_were(error: type[BaseException]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True), nn.BatchNorm1d(3))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def broken() -> Iterator[torch.Tensor]:
        yield torch.randn(5, 3, 4)
        raise error("in the middle")

    for estimate in (reestimate, update_norm_stats):
        with pytest.raises(error, match="in the middle"):
            estimate(model, broken())
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        assert not any("forward" in vars(module) for module in model)
