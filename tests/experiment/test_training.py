from __future__ import annotations

import json
import math
import random
import signal

import pytest
import torch
from torch import Tensor, nn

from lookaround.experiment import DivergedError, InterruptedRunError, UsageError, load_network
from lookaround.experiment.methods import METHODS
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.training import Training

# In runs this short the held-out loss keeps falling, and swad says that it returns the last model.
pytestmark = pytest.mark.filterwarnings("ignore:the SWAD window never opened")


def never() -> None:
    return None


def after(minibatches: int):
    """Asks for a stop after so many minibatches; it is asked once or twice after each."""

    def stop() -> int | None:
        return signal.SIGINT if training.step >= minibatches else None

    training: Training

    def bind(bound: Training):
        nonlocal training
        training = bound
        return stop

    return bind


def same(first: nn.Module, second: nn.Module) -> bool:
    found, expected = first.state_dict(), second.state_dict()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def without_seconds(folder) -> list[dict[str, object]]:
    return [{**record, "seconds": 0} for record in read_records(folder / METRICS)]


@pytest.mark.parametrize("method", list(METHODS))
def test_the_same_run_twice_gives_the_same_weights(start, method):
    first, second = start(method, folder="a"), start(method, folder="b")
    assert first.train(never).nll == second.train(never).nll
    assert same(first.model, second.model)


@pytest.mark.parametrize("method", list(METHODS))
def test_stopped_after_any_minibatch_and_resumed_it_ends_in_the_same_bits(start, tmp_path, method):
    whole = start(method, folder="whole")
    whole.train(never)
    for stop in sorted(random.Random(method).sample(range(1, 8), 3)):
        part = start(method, folder=f"stop-{stop}")
        with pytest.raises(InterruptedRunError):
            part.train(after(stop)(part))
        rest = start(method, folder=f"stop-{stop}")
        assert rest.step == stop
        torch.rand(7)  # whatever else has drawn numbers meanwhile
        rest = start(method, folder=f"stop-{stop}")
        result = rest.train(never)
        assert same(rest.model, whole.model)
        assert without_seconds(tmp_path / f"stop-{stop}") == without_seconds(tmp_path / "whole")
        assert result.gradient_evaluations == whole.method.gradient_evaluations


def test_dropout_goes_on_where_it_was(start, monkeypatch):
    def dropping(self):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    monkeypatch.setattr("lookaround.experiment.networks.Architecture.build", dropping)
    whole = start("lookahead", folder="whole")
    whole.train(never)
    part = start("lookahead", folder="part")
    with pytest.raises(InterruptedRunError):
        part.train(after(3)(part))
    rest = start("lookahead", folder="part")
    rest.train(never)
    assert same(rest.model, whole.model)


def test_a_kill_between_an_epochs_record_and_its_checkpoint_doubles_no_record(start, tmp_path, monkeypatch):
    whole = start("lookaround", folder="whole")
    whole.train(never)
    part = start("lookaround", folder="part", checkpoint_every=3)
    save = Training.save

    def killed(self):
        if self.step == 8:
            raise SystemExit("killed")
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", killed)
        with pytest.raises(SystemExit):
            part.train(never)
    assert len(read_records(tmp_path / "part" / METRICS)) == 2
    rest = start("lookaround", folder="part", checkpoint_every=3)
    assert rest.step == 6
    rest.train(never)
    assert same(rest.model, whole.model)
    assert without_seconds(tmp_path / "part") == without_seconds(tmp_path / "whole")


def test_checkpoints_come_as_often_as_asked(start, monkeypatch):
    steps: list[int] = []
    save = Training.save
    monkeypatch.setattr(Training, "save", lambda self: (steps.append(self.step), save(self)))
    start("sgd", checkpoint_every=3).train(never)
    assert steps == [3, 4, 6, 8]


def test_what_a_run_leaves_agrees(start, tmp_path, digits, display):
    training = start("lookaround", eval_train_loss=True)
    result = training.train(never)
    folder = tmp_path / "run"
    records = read_records(folder / METRICS)
    assert [(record["step"], record["epoch"]) for record in records] == [(4, 1), (8, 2)]
    assert display.records == records
    assert json.loads((folder / "result.json").read_text()) == {**result.__dict__}
    assert (records[-1]["top1"], records[-1]["nll"]) == (result.top1, result.nll)
    assert records[-1]["gradient_evaluations"] == result.gradient_evaluations == 24
    model, architecture = load_network(folder / "model.safetensors")
    with torch.inference_mode():
        logits = model(digits.normalize(digits.test_images))
        clean = nn.functional.cross_entropy(model(digits.normalize(digits.train_images)), digits.train_labels)
    assert result.top1 == pytest.approx(100 * (logits.argmax(1) == digits.test_labels).double().mean().item())
    assert result.nll == pytest.approx(nn.functional.cross_entropy(logits, digits.test_labels).item(), rel=1e-5)
    assert records[-1]["clean_train_loss"] == pytest.approx(clean.item(), rel=1e-5)
    assert architecture.mean == digits.mean


def test_the_training_loss_of_a_record_is_the_mean_over_its_epochs_copies(start, display):
    start("sgd").train(never)
    assert len(display.losses) == 8
    for epoch, record in enumerate(display.records):
        assert record["train_loss"] == pytest.approx(sum(display.losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-6)


def test_label_smoothing_is_in_the_training_loss_only(start, display):
    start("sgd", folder="plain", lr=0.0).train(never)
    start("sgd", folder="smooth", lr=0.0, label_smoothing=0.5).train(never)
    plain, smooth = display.records[0], display.records[2]
    assert smooth["nll"] == plain["nll"]
    assert smooth["train_loss"] != plain["train_loss"]


def test_a_run_that_diverges_says_so_and_keeps_its_records(start, tmp_path):
    training = start("sgd", lr=1e30, warmup_epochs=1.0)
    with pytest.raises(DivergedError, match=r"^sgd with seed 0 diverged: .* is not finite in epoch 1; try a lower"):
        training.train(never)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("k", [1, 3, 100])
def test_lookaround_that_loses_every_branch_says_so_wherever_its_average_falls(start, k):
    with pytest.raises(DivergedError, match=r"^lookaround with seed 0 diverged"):
        start("lookaround", lr=1e38, k=k).train(never)


def test_another_error_of_a_method_is_not_taken_for_divergence(start, monkeypatch):
    training = start("lookaround")

    def wrong(minibatch):
        raise ValueError("something else")

    monkeypatch.setattr(training.method, "train_minibatch", wrong)
    with pytest.raises(ValueError, match="something else"):
        training.train(never)


def test_one_failed_branch_does_not_stop_lookaround(start, monkeypatch):
    training = start("lookaround")
    loss = training._loss
    calls: list[int] = []

    def failing_once(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(0)
        value = loss(model, images, labels)
        return value * math.nan if len(calls) == 2 else value

    monkeypatch.setattr(
        training.method, "setting", type(training.method.setting)(training.model, training.config, failing_once)
    )
    with pytest.warns(RuntimeWarning, match="branch 1 of 3 has weights that are infinite or NaN"):
        result = training.train(never)
    assert math.isfinite(result.nll)
    assert math.isfinite(read_records(training.folder / METRICS)[0]["train_loss"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("method"), "'method'"),
        (lambda state: state["model"].pop("0.weight"), "Error"),
        (lambda state: state.update(step="x"), "invalid literal"),
        (lambda state: state.update(random={"cpu": torch.zeros(3), "cuda": []}), "."),
    ],
)
def test_a_checkpoint_with_parts_missing_or_wrong_is_named(start, tmp_path, spoil, message):
    start("sgd").train(never)
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    spoil(state)
    torch.save(state, path)
    with pytest.raises(UsageError, match=f"^cannot use checkpoint .*checkpoint.pt: .*{message}.*; remove its folder"):
        start("sgd")


def test_a_checkpoint_of_another_network_is_refused(start):
    start("lookaround").train(never)
    with pytest.raises(UsageError, match=r"^cannot use checkpoint"):
        start("lookaround", width=5)


@pytest.mark.parametrize("method", ["sgd", "lookaround"])
def test_options_that_change_the_arithmetic_still_train(start, method):
    plain = start(method, folder="plain")
    plain.train(never)
    for name, changes in {
        "amp": {"amp": True},
        "channels": {"channels_last": True},
        "both": {"amp": True, "channels_last": True},
    }.items():
        training = start(method, folder=name, **changes)
        assert math.isfinite(training.train(never).nll)
        assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())
    assert not same(start(method, folder="amp", amp=True).model, plain.model)


@pytest.mark.parametrize("method", ["sgd", "lookaround"])
def test_a_compiled_network_trains_alike_and_keeps_its_names(start, tmp_path, monkeypatch, method):
    """With the compiler's front end, which is what could see stale weights; its code generator takes a minute."""
    compile_ = nn.Module.compile
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_(self, backend="eager")))
    plain, fast = start(method, folder="plain", epochs=1), start(method, folder="fast", epochs=1, compile=True)
    assert plain.train(never).nll == pytest.approx(fast.train(never).nll, rel=1e-5)
    assert compiled == [fast.model]
    loaded, _ = load_network(tmp_path / "fast" / "model.safetensors")
    assert same(loaded, fast.model)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_learns_digits(method, tiny, tmp_path, display):
    """Four epochs on 600 digits: above 85 % of 360 test digits, where guessing gives 10 %."""
    from dataclasses import replace

    from lookaround.tasks.vision.data import load_data

    config = replace(tiny, train_images=600, test_images=None, epochs=4, batch_size=32, width=8, k=5)
    data = load_data("digits").subset(600, None, 0)
    assert Training(config, data, method, 0, tmp_path, display).train(never).top1 > 85
