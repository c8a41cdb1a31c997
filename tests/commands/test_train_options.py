from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lookaround.cli import main
from lookaround.commands.train import parse_train
from lookaround.experiment import Budget, Machine, UsageError
from lookaround.tasks.vision import VisionConfig, preset


def labels(words):
    return [spec.label for spec in parse_train(words).plan.methods]


def test_the_demonstrations_words():
    words = [
        "--data",
        "digits",
        "--methods",
        "sgd",
        "lookahead",
        "lookaround",
        "--seeds",
        "0",
        "1",
        "2",
        "--out",
        "runs/demo",
    ]
    typed = parse_train(words)
    assert typed.plan.config == preset("digits")
    assert [spec.label for spec in typed.plan.methods] == ["sgd", "lookahead", "lookaround"]
    assert (typed.plan.seeds, typed.out, typed.resume) == ((0, 1, 2), Path("runs/demo"), False)
    assert parse_train([*words, "--resume"]).resume


@pytest.mark.parametrize("words", [["--branches", "2", "--data", "cifar100"], ["--data=cifar100", "--branches=2"]])
def test_defaults_are_those_of_the_data_set_wherever_it_is_named(words):
    typed = parse_train(words)
    assert typed.plan.config == replace(preset("cifar100"), branches=2)
    assert (typed.plan.budget.epochs, typed.out) == (200, Path("runs/cifar100"))


def helped(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        parse_train([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_every_option_is_in_the_help_which_is_grouped_and_fits_80_columns(capsys):
    shown = helped(capsys)
    names = [field.name for part in (VisionConfig, Budget, Machine) for field in fields(part)]
    names += ["methods", "seeds", "all", "add_methods", "add_seeds", "out", "resume", "config", "task"]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in shown] == []
    assert max(map(len, shown.splitlines())) <= 80
    for group in ("comparison", "vision", "budget", "machine", "folder"):
        assert f" {group} options " in shown
    assert "(default: resnet18)" in helped(capsys, "--data", "cifar10")


def test_settings_for_all_go_to_those_that_have_them_and_were_not_given_their_own():
    words = ["--methods", "sgd", "adamw", "lookaround:lr=0.3", "--all", "lr=0.05,momentum=0.8,k=7"]
    assert labels(words) == ["sgd:lr=0.05,momentum=0.8", "adamw:lr=0.05", "lookaround:k=7,lr=0.3,momentum=0.8"]


def test_one_method_at_three_settings_is_three_rows():
    words = ["--methods", "lookaround:k=20,start=0.5,lr=0.2", "lookaround:batch=1/d", "lookahead:alpha=0.8,inner=adamw"]
    assert labels(words) == words[1:]


def begun(folder: Path) -> Path:
    words = ["--train-images", "60", "--test-images", "30", "--width", "4", "--epochs", "1", "--device", "cpu"]
    assert main(["train", *words, "--methods", "sgd:batch=20", "--seeds", "3", "--out", str(folder)]) == 0
    return folder


def test_resume_and_extensions_need_the_folder_alone(tmp_path):
    out = begun(tmp_path / "a")
    for words in (["--resume"], ["--add-seeds", "5"], ["--add-methods", "ema"]):
        typed = parse_train(["--out", str(out), *words])
        assert (typed.plan.config.width, typed.plan.seeds, typed.plan.budget.epochs) == (4, (3,), 1)
        assert [spec.label for spec in typed.plan.methods] == ["sgd:batch=20"]
    assert typed.add_methods[0].label == "ema"
    assert parse_train(["--out", str(out), "--resume", "--width", "5"]).plan.config.width == 5  # which is then refused


@pytest.mark.parametrize("kind", ["toml", "json", "experiment"])
def test_a_file_of_options_gives_what_is_not_typed(tmp_path, kind):
    path = tmp_path / f"options.{'json' if kind != 'toml' else 'toml'}"
    options = {"data": "cifar10", "methods": ["sgd:lr=0.3"], "train-images": 500, "seeds": [4, 5]}
    if kind == "toml":
        path.write_text('data = "cifar10"\nmethods = ["sgd:lr=0.3"]\ntrain-images = 500\nseeds = [4, 5]\n')
    else:
        path.write_text(json.dumps(options if kind == "json" else {"options": options, "environment": {}}))
    plan = parse_train(["--config", str(path), "--seeds", "6"]).plan
    assert (plan.config.data, plan.config.model, plan.config.train_images) == ("cifar10", "resnet18", 500)
    assert ([spec.label for spec in plan.methods], plan.seeds) == (["sgd:lr=0.3"], (6,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[", "cannot use --config .*options.toml: "),
        ("wheels = 4", "unknown option 'wheels' for the vision task; it has "),
        ('methods = ["sgd:k=3"]', "sgd has no setting 'k'"),
        ('epochs = "many"', "epochs='many'"),
        (None, "cannot use --config .*options.toml: No such file or directory"),
    ],
)
def test_a_file_of_options_that_cannot_be_used_is_named(tmp_path, content, said):
    path = tmp_path / "options.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=said):
        parse_train(["--config", str(path)])


def test_lists_optional_values_and_flags():
    words = ["--augmentations", "shift", "none", "shift", "--checkpoint-every", "7", "--amp", "--no-compile"]
    plan = parse_train(words).plan
    assert plan.config.augmentations == ("shift", "none", "shift")
    assert (plan.machine.checkpoint_every, plan.machine.amp, plan.machine.compile) == (7, True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nosuch"], "unknown data set 'nosuch'; choose one of digits, cifar10, cifar100, folder"),
        (["--task", "chess"], "unknown task 'chess'; choose one of vision"),
        (["--methods", "lookaround:k=0"], "lookaround: k must be at least 1, got 0"),
        (["--epochs", "0"], "^--epochs must be at least 1, got 0"),
        (["--train-images", "0"], "^--train-images must be at least 1, got 0; see lookaround train --help$"),
        (["--task", "language", "--window", "0"], "^--window must be at least 1, got 0; see lookaround train --help$"),
        (["--epochs", "many"], r"^Error parsing --epochs: invalid literal .*'many'; see lookaround train --help$"),
        (["--epoch", "3"], "^Unrecognized options: --epoch, 3; see lookaround train --help$"),
        (["--methods"], "--methods names none; name at least one"),
        (["--seeds", "1", "1"], "--seeds names 1 twice"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        parse_train(words)
