from __future__ import annotations

import json
import math
import random
import signal
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lookaround.experiment import DivergedError, InterruptedRunError, UsageError
from lookaround.experiment.checkpoints import load_checkpoint, save_checkpoint
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.running import prepare
from lookaround.experiment.training import Training
from lookaround.methods import METHODS
from lookaround.tasks.base import Batch
from lookaround.tasks.vision import load_network
from reference.tiny_experiment import a_plan

OPTIMIZERS = [name for name, entry in METHODS.items() if entry.inner is not None and name != "lbfgs"]
JOINED = ["lookahead+sam", "lookaround+sam", "lookaround+ema", "lookahead+sam+swa", "lookaround+swad"]
TRAINED = [*OPTIMIZERS[:3], *(name for name in METHODS if name not in [*OPTIMIZERS, "lbfgs"]), *JOINED]

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


@pytest.mark.parametrize("method", [*TRAINED, "lbfgs:lr=0.01,max_iter=2"])
def test_the_same_run_twice_gives_the_same_weights(start, method):
    first, second = start(method, folder="a"), start(method, folder="b")
    assert first.train(never).metrics == second.train(never).metrics
    assert same(first.model, second.model)


@pytest.mark.parametrize("method", [*TRAINED, "lbfgs:lr=0.01,max_iter=1"])
def test_stopped_after_any_minibatch_and_resumed_it_ends_in_the_same_bits(start, tmp_path, method):
    whole = start(method, folder="whole")
    whole.train(never)
    for stop in sorted(random.Random(method).sample(range(1, whole.total), min(3, whole.total - 1))):
        part = start(method, folder=f"stop-{stop}")
        with pytest.raises(InterruptedRunError):
            part.train(after(stop)(part))
        rest = start(method, folder=f"stop-{stop}")
        assert stop <= rest.step <= whole.total
        torch.rand(7)  # whatever else has drawn numbers meanwhile
        rest = start(method, folder=f"stop-{stop}")
        result = rest.train(never)
        assert same(rest.model, whole.model)
        assert without_seconds(tmp_path / f"stop-{stop}") == without_seconds(tmp_path / "whole")
        assert result.gradient_evaluations == whole.method.cost.gradients


def test_dropout_goes_on_where_it_was(start, monkeypatch):
    def dropping(self):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    monkeypatch.setattr("lookaround.tasks.vision.networks.Architecture.build", dropping)
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
    training = start("lookaround:k=3", eval_train=True, plain=True)
    result = training.train(never)
    folder = tmp_path / "run"
    records = read_records(folder / METRICS)
    assert [(record["step"], record["epoch"]) for record in records] == [(4, 1), (8, 2)]
    assert display.records == records
    assert json.loads((folder / "result.json").read_text()) == {**result.__dict__}
    assert (result.method, result.seed, result.split, result.diverged) == ("lookaround:k=3", 0, "test", None)
    assert (result.settings["k"], result.settings["lr"], result.settings["batch"]) == (3, 0.1, 15)
    assert records[-1]["metrics"] == result.metrics
    assert [record["spent"] for record in records] == [180, 360]
    assert (result.spent, result.budget, result.unit) == (360, 360, "samples")
    assert records[-1]["gradient_evaluations"] == result.gradient_evaluations == 24
    # The last round was not at its end: branch 0 and the average differ.
    assert records[-1]["plain"]["nll"] != records[-1]["metrics"]["nll"]
    model, architecture = load_network(folder / "model.safetensors")
    with torch.inference_mode():
        logits = model(digits.normalize(digits.test_images))
        clean = nn.functional.cross_entropy(model(digits.normalize(digits.train_images)), digits.train_labels)
    assert result.metrics["top1"] == pytest.approx(
        100 * (logits.argmax(1) == digits.test_labels).double().mean().item()
    )
    assert result.metrics["nll"] == pytest.approx(
        nn.functional.cross_entropy(logits, digits.test_labels).item(), rel=1e-5
    )
    assert records[-1]["train"]["nll"] == pytest.approx(clean.item(), rel=1e-5)
    assert architecture.mean == digits.mean


def test_the_training_loss_of_a_record_is_the_mean_over_its_epochs_copies(start, display):
    start("sgd").train(never)
    assert len(display.losses) == 8
    for epoch, record in enumerate(display.records):
        assert record["train_loss"] == pytest.approx(sum(display.losses[4 * epoch : 4 * epoch + 4]) / 4, rel=1e-6)


def test_label_smoothing_is_in_the_training_loss_only(start, display):
    start("sgd:lr=0", folder="plain").train(never)
    start("sgd:lr=0", folder="smooth", label_smoothing=0.5).train(never)
    plain, smooth = display.records[0], display.records[2]
    assert smooth["metrics"] == plain["metrics"]
    assert smooth["train_loss"] != plain["train_loss"]


def test_a_run_that_diverges_says_so_and_keeps_its_records(start, tmp_path):
    training = start("sgd:lr=1e30")
    with pytest.raises(
        DivergedError, match=r"^sgd:lr=1e\+30 with seed 0 diverged: .* is not finite in epoch 1; try a lower"
    ):
        training.train(never)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("k", [1, 3, 100])
def test_lookaround_that_loses_every_branch_says_so_wherever_its_average_falls(start, k):
    with pytest.raises(DivergedError, match=r"^lookaround:\S+ with seed 0 diverged"):
        start(f"lookaround:lr=1e38,k={k}").train(never)


def test_another_error_of_a_method_is_not_taken_for_divergence(start, monkeypatch):
    training = start("lookaround")

    def wrong(minibatches, factors):
        raise ValueError("something else")

    monkeypatch.setattr(training.method, "train_together", wrong)
    with pytest.raises(ValueError, match="something else"):
        training.train(never)


def test_one_failed_branch_does_not_stop_lookaround(start, monkeypatch):
    training = start("lookaround")
    loss = training.method.setup.loss
    calls: list[int] = []

    def failing_once(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(0)
        value = loss(model, batch)
        return value * math.nan if len(calls) == 2 else value

    monkeypatch.setattr(training.method, "setup", replace(training.method.setup, loss=failing_once))
    with pytest.warns(RuntimeWarning, match="branch 1 of 3 has weights that are infinite or NaN"):
        result = training.train(never)
    assert math.isfinite(result.metrics["nll"])
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
    state = load_checkpoint(path)
    spoil(state)
    save_checkpoint(path, state)
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
        assert math.isfinite(training.train(never).metrics["nll"])
        assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())
    assert not same(start(method, folder="amp", amp=True).model, plain.model)


@pytest.mark.parametrize("method", ["sgd", "lookaround"])
def test_a_compiled_network_trains_alike_and_keeps_its_names(start, tmp_path, monkeypatch, method):
    """With the compiler's front end, which is what could see stale weights; its code generator takes a minute."""
    compile_ = nn.Module.compile
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_(self, backend="eager")))
    plain, fast = start(method, folder="plain", epochs=1), start(method, folder="fast", epochs=1, compile=True)
    assert plain.train(never).metrics["nll"] == pytest.approx(fast.train(never).metrics["nll"], rel=1e-5)
    assert compiled == [fast.model]
    loaded, _ = load_network(tmp_path / "fast" / "model.safetensors")
    assert same(loaded, fast.model)


# Rates of the optimizers whose own is far too small for eighty steps.
RATES = {"adadelta": 1, "adagrad": 0.03, "muon": 0.01, "radam": 0.02}
LEARNERS = list(dict.fromkeys([*(name for name in TRAINED if name in METHODS), *RATES]))


@pytest.mark.parametrize(
    ("method", "copies"), [(name, "shared") for name in LEARNERS] + [(name, "independent") for name in LEARNERS[:6]]
)
def test_every_method_learns_digits(method, copies, tmp_path, display):
    """Four epochs on 600 digits: above 85 % of 360 test digits, where guessing gives 10 %."""
    spec = f"{method}:batch=32" + (f",lr={RATES[method]}" if method in RATES else "")
    epochs = 8 if method == "sam" else 4  # its steps cost two gradients
    plan = a_plan(spec, train_images=600, test_images=None, epochs=epochs, width=8, copies=copies)
    training = Training(prepare(plan), plan.methods[0], 0, tmp_path, display)
    assert training.train(never).metrics["top1"] > 85
