"""One tiny experiment on real digits, trained once, of which every command is given the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround.cli import main

TINY = ["--epochs", "2", "--train-images", "300", "--test-images", "60", "--width", "4", "--copies", "shared"]


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("experiment")
    words = [
        "train",
        *TINY,
        "--methods",
        "sgd:batch=20",
        "lookahead:batch=20",
        "lookaround:batch=20",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    return out


@pytest.fixture(scope="session")
def runs(experiment) -> dict[str, str]:
    """The folder of each method's run."""
    return {method: str(experiment / f"{method},batch=20" / "seed-0") for method in ("sgd", "lookahead", "lookaround")}


@pytest.fixture
def refused(capsys):
    """Runs a command that the user has to change, and returns the one line it says."""

    def run(*words: str) -> str:
        assert main(list(words)) == 2
        said = capsys.readouterr().err
        assert said.startswith("lookaround: ")
        assert len(said.splitlines()) == 1
        return said.removeprefix("lookaround: ").rstrip("\n")

    return run
