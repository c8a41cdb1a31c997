"""Runs of text among the commands: soups of them are networks of text again."""

import json
import math
from pathlib import Path

import pytest

from lookaround.cli import main
from lookaround.commands.texts import evaluated, predicted, text_task
from lookaround.errors import UsageError
from lookaround.tasks.language import load_language


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs of a language model that part from the same weights."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for part in ("train", "valid", "test"):
        (data / f"{part}.txt").write_text("one two three\nthree two one\n" * 10)
    words = f"train --task language --root {data} --width 4 --layers 1 --window 4 --epochs 1 --all batch=2 --out {out}"
    assert main([*words.split(), "--methods", "adamw", "adamw:lr=0.01"]) == 0
    return sorted(out.glob("*/seed-0"))


def test_a_soup_of_language_models_is_one(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(runs) == 2
    soup = tmp_path / "soup.safetensors"
    assert main(["soup", str(soup), *map(str, runs)]) == 0
    models = [load_language(path / "model.safetensors")[0] for path in runs]
    mixed, vocabulary = load_language(soup)
    assert len(vocabulary) == 5
    for name, weight in mixed.named_parameters():
        mean = sum(model.get_parameter(name).detach().double() for model in models) / 2
        assert (weight - mean).abs().max() < 1e-6


def test_the_words_of_the_text_tasks_that_cannot_be_used_are_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff")
    (tmp_path / "valid.txt").write_text("a")
    (tmp_path / "test.txt").write_text("a")
    out = str(tmp_path / "out")
    for words, said in (
        (["--task", "language"], "needs --root"),
        (["--task", "language", "--root", str(tmp_path)], "train.txt is not UTF-8: byte 0xff in line 1"),
        (
            ["--task", "language", "--network", "gru"],
            "invalid choice 'gru' for argument '--network'",
        ),
        (["--task", "translation", "--root", str(tmp_path)], "say from what into what"),
        (["--task", "speech"], "unknown task 'speech'; choose one of vision, language, translation"),
    ):
        assert main(["train", *words, "--out", out]) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
    assert not Path(out).exists()


def test_a_language_model_is_measured_and_used_on_other_files(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("one two\nthree three four\n")
    assert text_task(runs[0]) == "language"
    assert text_task(other) is None
    whole = evaluated(runs[0], tmp_path / "data")
    saved = json.loads((runs[0] / "result.json").read_text())["metrics"]
    assert whole == pytest.approx(saved, rel=1e-5)
    header, *rows = predicted(runs[0], [other])
    assert header == ("file", "line", "tokens", "perplexity")
    assert [row[:3] for row in rows] == [(str(other), "1", "3"), (str(other), "2", "4")]
    total = sum(int(row[2]) * math.log(float(row[3])) for row in rows)
    assert evaluated(runs[0], other)["loss"] == pytest.approx(total / 7, rel=1e-2)


def test_a_translator_is_measured_and_used_on_other_files(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for part in ("train", "val", "test"):
        for ending, words in (("en", "one two three"), ("de", "eins zwei drei")):
            (data / f"{part}.{ending}").write_text(f"{words}\n{words} {words}\n" * 8)
    words = f"train --task translation --root {data} --source en --target de --width 8 --heads 2 --layers 1 --epochs 1"
    assert main([*words.split(), "--vocabulary", "270", "--methods", "adamw:batch=100", "--out", str(out)]) == 0
    (run,) = out.glob("*/seed-0")
    assert text_task(run) == "translation"
    saved = json.loads((run / "result.json").read_text())["metrics"]
    assert evaluated(run, data) == pytest.approx(saved, rel=1e-5)
    header, *rows = predicted(run, [data / "test.en"])
    assert header == ("file", "line", "translation")
    assert [row[1] for row in rows] == [str(number) for number in range(1, 17)]
    assert len({row[2] for row in rows}) <= 2  # two different sentences
    (data / "test.de").write_text("eins\n")
    with pytest.raises(UsageError, match="have different numbers of lines"):
        evaluated(run, data)
    with pytest.raises(UsageError, match="holds no test"):
        evaluated(run, tmp_path)
