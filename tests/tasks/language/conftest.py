"""A folder of a small text with something to learn: arithmetic, said in words."""

from pathlib import Path

import pytest

NAMES = ["zero", "one", "two", "three", "four", "five"]


def lines(first: int, last: int) -> str:
    said = (f"{NAMES[i % 6]} and {NAMES[(i // 6) % 6]} is {NAMES[(i + i // 6) % 6]}" for i in range(first, last))
    return "".join(f"{line}\n" for line in said)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text")
    for part, (first, last) in {"train": (0, 60), "valid": (60, 66), "test": (66, 76)}.items():
        (path / f"{part}.txt").write_text(lines(first, last), encoding="utf-8")
    return path
