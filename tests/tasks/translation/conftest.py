"""A folder of pairs with something to learn: counting, in two languages."""

from pathlib import Path

import pytest

EN = ["one", "two", "three", "four", "five", "six"]
DE = ["eins", "zwei", "drei", "vier", "fünf", "sechs"]


def write(folder: Path, part: str, first: int, last: int) -> None:
    for ending, words in (("en", EN), ("de", DE)):
        said = (" ".join(words[(i * (k + 1)) % 6] for k in range(1 + i % 4)) for i in range(first, last))
        (folder / f"{part}.{ending}").write_text("".join(f"{line} .\n" for line in said), encoding="utf-8")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs")
    for part, (first, last) in {"train": (0, 80), "val": (80, 90), "test_2016": (90, 102)}.items():
        write(path, part, first, last)
    return path
