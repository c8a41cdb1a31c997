from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from lookaround.commands.train import parse_train
from lookaround.experiment import TrainConfig, UsageError, preset


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
    options = parse_train(words)
    assert options.config == replace(preset("digits"), methods=("sgd", "lookahead", "lookaround"), seeds=(0, 1, 2))
    assert options.out == Path("runs/demo")
    assert not options.resume
    assert parse_train([*words, "--resume"]).resume


@pytest.mark.parametrize("words", [["--lr", "0.2", "--data", "cifar100"], ["--data=cifar100", "--lr=0.2"]])
def test_defaults_are_those_of_the_data_set_wherever_it_is_named(words):
    options = parse_train(words)
    assert options.config == replace(preset("cifar100"), lr=0.2)
    assert options.out == Path("runs/cifar100")


def test_every_field_has_an_option_that_says_what_it_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_train(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    missing = [field.name for field in fields(TrainConfig) if f"--{field.name.replace('_', '-')}" not in shown]
    assert missing == []
    assert "Radius of SAM's ascent step." in shown


def test_lists_optional_values_and_flags():
    words = [
        "--augmentations",
        "shift",
        "none",
        "shift",
        "--alpha",
        "adaptive",
        "--checkpoint-every",
        "7",
        "--amp",
        "--no-compile",
    ]
    config = parse_train(words).config
    assert config.augmentations == ("shift", "none", "shift")
    assert config.alpha == "adaptive"
    assert config.checkpoint_every == 7
    assert config.amp
    assert not config.compile


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "nosuch"], "unknown data set 'nosuch'; choose one of digits, cifar10, cifar100, folder"),
        (["--k", "0"], "k must be at least 1, got 0"),
        (["--epochs", "many"], r"^Error parsing --epochs: invalid literal .*'many'; see lookaround train --help$"),
        (["--epoch", "3"], "^Unrecognized options: --epoch, 3; see lookaround train --help$"),
        (["--epochs", "10", "--data", "cifar100"], "milestones must rise and lie between 0 and epochs = 10"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(words, message):
    with pytest.raises(UsageError, match=message):
        parse_train(words)
