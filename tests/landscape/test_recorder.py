"""The recorder against branches that are trained and measured by hand."""

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround import Lookahead, Lookaround
from lookaround.landscape import Plane, Recorder, flatten
from lookaround.tasks.vision.models import build_model

ONE = [(torch.eye(1), torch.zeros(1))]


class Bowl(nn.Module):
    """Its output is w₁² + w₂²."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.weight.square().sum()[None]


def output(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.sum()


def push(optimizer: torch.optim.Optimizer, model: Bowl, step: list[float]) -> None:
    """With lr 1, move the weights by ``step``."""
    model.weight.grad = -torch.tensor(step, dtype=torch.float64)
    optimizer.step()


STEPS = [[[2.0, 0.0], [0.0, 2.0]], [[4.0, 0.0], [0.0, 4.0]]]


def test_a_round_by_hand() -> None:
    model = Bowl()
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=2, k=2, alpha=0.5)
    settings = {"criterion": output, "score": None, "barrier_points": 1, "keep_weights": True}
    with Recorder(optimizer, model, ONE, **settings) as recorder:
        for steps in STEPS:
            for branch in optimizer.around():
                push(optimizer, model, steps[branch])
        for branch in optimizer.around():
            push(optimizer, model, STEPS[0][branch])
    start, first, second, restart, third = recorder.records
    assert [(r.update, r.round, r.step) for r in recorder.records] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (2, 1, 0),
        (3, 1, 1),
    ]
    assert (start.average.loss, start.spread, start.barrier) == (0.0, 0.0, 0.0)
    assert math.isnan(start.angles[0])
    # Branches at (2, 0) and (0, 2): mean (1, 1), φ + α (mean - φ) = (½, ½).
    assert [value.loss for value in first.branches] == [4.0, 4.0]
    assert first.average.loss == 0.5
    assert first.spread == pytest.approx(math.sqrt(2))
    assert first.angles == pytest.approx((90.0,))
    assert first.barrier == 0.0  # the middle has 2, below the chord at 4
    # At (6, 0) and (0, 6): mean (3, 3), average (1.5, 1.5).
    assert [value.loss for value in second.branches] == [36.0, 36.0]
    assert second.average.loss == 4.5
    assert second.spread == pytest.approx(math.sqrt(18))
    assert restart.average.loss == 4.5
    assert [value.loss for value in restart.branches] == [4.5, 4.5]
    # From (1.5, 1.5) to (3.5, 1.5) and (1.5, 3.5): mean (2.5, 2.5), average (2, 2).
    assert third.average.loss == pytest.approx(8.0)
    assert third.angles == pytest.approx((90.0,))
    places = [[0.0, 0.0], [0.5, 0.5], [1.5, 1.5], [1.5, 1.5], [2.0, 2.0]]
    assert [weights.tolist() for weights in recorder.weights] == places


def test_a_barrier_and_a_sharp_angle_by_hand() -> None:
    class Ridge(Bowl):
        def forward(self, _: Tensor) -> Tensor:
            return -self.weight.square().sum()[None]

    model = Ridge()
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=3, k=5)
    with Recorder(optimizer, model, ONE, criterion=output, score=None, barrier_points=3) as recorder:
        for branch in optimizer.around():
            push(optimizer, model, [[2.0, 0.0], [2.0, 2e-8], [-2.0, 0.0]][branch])
    record = recorder.records[-1]
    assert record.barrier == pytest.approx(4.0)  # 0 in the middle of (2, 0) and (-2, 0), where both ends are -4
    assert record.angles == pytest.approx((math.degrees(1e-8), 180.0, 180.0), rel=1e-6)


def test_lookahead_shows_the_fast_weights_before_and_the_slow_ones_after_each_average() -> None:
    model = Bowl()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1.0), k=2, alpha=0.25)
    recorder = Recorder(optimizer, model, ONE, criterion=output, score=None)
    for _ in range(4):
        push(optimizer, model, [2.0, 0.0])
    recorder.close()
    push(optimizer, model, [2.0, 0.0])
    # φ: 0 → ¼ · 4 = 1 → 1 + ¼ · 4 = 2; θ: 2, 4 | 3, 5
    assert [r.branches[0].loss for r in recorder.records] == [0, 4, 16, 1, 9, 25]
    assert [r.average.loss for r in recorder.records] == [0, 0.25, 1, 1, 2.25, 4]
    assert [r.angles for r in recorder.records] == [()] * 6


def test_groups_with_an_alpha_of_their_own() -> None:
    model = nn.Sequential(Bowl(), Bowl())
    model.forward = lambda x: (model[0](x) + 10 * model[1](x))[None]  # type: ignore[method-assign]
    groups = [{"params": [model[0].weight]}, {"params": [model[1].weight]}]
    optimizer = Lookahead(torch.optim.SGD(groups, lr=1.0), k=5, alpha=0.5)
    optimizer.param_groups[1]["lookahead_alpha"] = 0.0
    with Recorder(optimizer, model, ONE, criterion=output, score=None, keep_weights=True) as recorder:
        for parameter in model.parameters():
            parameter.grad = -torch.ones_like(parameter)
        optimizer.step()
    assert recorder.weights[-1].tolist() == [0.5, 0.5, 0.0, 0.0]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 8, 8, generator=generator), torch.arange(24) % 4


def train(
    recorded: bool, mode: str, in_around: bool = True, **options: object
) -> tuple[nn.Module, Recorder | None, list]:
    """Two rounds of a batch-norm network; beside it, what the branches and their average are just before the average step."""
    torch.manual_seed(0)
    model = build_model("small-cnn", classes=4, channels=1, image_size=8, width=2)
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), 2, 3, model=model)
    images, labels = data()
    recorder = Recorder(optimizer, model, [(images, labels)], norm_stats=mode, **options) if recorded else None
    copies: list = []
    for step in range(6):
        ends = []
        for branch in optimizer.around() if in_around else range(2):
            loss = F.cross_entropy(model(images[branch::2]), labels[branch::2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ends.append(copy.deepcopy(model))
        if step % 3 < 2:
            with optimizer.averaged():
                copies.append((step, ends, copy.deepcopy(model)))
    return model, recorder, copies


def accuracy_and_loss(model: nn.Module) -> tuple[float, float]:
    images, labels = data()
    with torch.no_grad():
        outputs = model.eval()(images)
    return F.cross_entropy(outputs, labels).item(), 100 * (outputs.argmax(1) == labels).double().mean().item()


def test_records_are_the_branches_and_the_average_with_their_own_statistics() -> None:
    _, recorder, copies = train(True, "fixed")
    records = {r.update - 1: r for r in recorder.records if r.step > 0}
    assert len(records) == 6
    for step, ends, average in copies:
        record = records[step]
        for value, end in zip(record.branches, ends, strict=True):
            assert value == pytest.approx(accuracy_and_loss(end), rel=1e-5)
        assert record.average == pytest.approx(accuracy_and_loss(average), rel=1e-5)
        mean = (flatten(ends[0]) + flatten(ends[1])) / 2
        assert record.spread == pytest.approx((flatten(ends[0]) - mean).norm().item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["fixed", "reestimate"])
def test_recording_changes_nothing_of_the_run(mode: str) -> None:
    alone, _, _ = train(False, mode)
    watched, recorder, _ = train(True, mode, barrier_points=2)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(watched.state_dict()[name], tensor), name
    assert [m.training for m in watched.modules()] == [m.training for m in alone.modules()]
    assert all(r.barrier >= 0 for r in recorder.records)
    note = {
        "fixed": "norm statistics as the run keeps them",
        "reestimate": "norm statistics re-estimated on 24 samples",
    }
    assert recorder.norm_note.startswith(note[mode])


def test_loops_with_and_without_around_give_the_same_records(tmp_path: Path) -> None:
    tables = []
    for in_around in (True, False):
        _, recorder, _ = train(True, "reestimate", in_around)
        recorder.save_csv(tmp_path / "records.csv")
        tables.append((tmp_path / "records.csv").read_text())
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert [row["step"] for row in rows] == list("01230123")
    assert float(rows[1]["branch2_accuracy"]) == recorder.records[1].branches[1].accuracy
    assert set(rows[0]) >= {"update", "round", "average_loss", "spread", "angle_1_2", "barrier"}


def test_recording_begins_with_the_next_round() -> None:
    model = Bowl()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=1.0), k=3)
    push(optimizer, model, [1.0, 0.0])
    with Recorder(optimizer, model, ONE, criterion=output, score=None) as recorder:
        for _ in range(3):
            push(optimizer, model, [1.0, 0.0])
    assert [(r.round, r.step) for r in recorder.records] == [(1, 0), (1, 1)]
    with pytest.raises(ValueError, match="nothing has been recorded"):
        Recorder(optimizer, model, ONE, criterion=output, score=None).save_csv("never-written.csv")


def test_branches_before_a_late_start_are_not_recorded() -> None:
    model = Bowl()
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=2, k=1, start=2)
    with Recorder(optimizer, model, ONE, criterion=output, score=None) as recorder:
        for _ in range(3):
            for _branch in optimizer.around():
                push(optimizer, model, [1.0, 0.0])
    assert [(r.round, r.step) for r in recorder.records] == [(0, 0), (0, 1)]
    assert recorder.records[0].average.loss == 16.0  # four steps of the shared weights


def test_kept_weights_lie_on_a_plane_of_the_run() -> None:
    model, recorder, _ = train(True, "reestimate", keep_weights=True)
    plane = Plane.through(recorder.weights[0], recorder.weights[3], recorder.weights[-1])
    assert plane.project(recorder.weights[3])[2] == 0.0
    torch.testing.assert_close(recorder.weights[-1], flatten(model))


def test_other_optimizers_have_no_rounds() -> None:
    model = Bowl()
    with pytest.raises(TypeError, match="have rounds to record, got SGD"):
        Recorder(torch.optim.SGD(model.parameters(), lr=1.0), model, ONE)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        Recorder(Lookahead(torch.optim.SGD(model.parameters(), lr=1.0)), model, ONE, barrier_points=-1)
