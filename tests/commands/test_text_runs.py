"""Runs of text among the commands: soups of them are networks of text again."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lookaround.cli import main
from lookaround.commands.texts import evaluated, predicted, text_task
from lookaround.errors import UsageError
from lookaround.tasks.language import load_language
from lookaround.tasks.text import TextError
from lookaround.tasks.translation import TranslationConfig, TranslationTask, load_translator
from lookaround.tasks.translation.pairs import Bitext, read_pairs


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
    with pytest.raises(TextError, match=r"has 16 lines and .* 1;"):
        evaluated(run, data)
    with pytest.raises(TextError, match="holds no test"):
        evaluated(run, tmp_path)
    with pytest.raises(UsageError, match=r"is a file; a translation is measured on a folder with test.en and test.de"):
        evaluated(run, data / "test.en")


def shown(run: Path, names: tuple[tuple[str, int], ...]) -> list[str]:
    """A line of the table of `lookaround evaluate`, from what training measured."""
    result = json.loads((run / "result.json").read_text())
    numbers = [f"{result['metrics'][name]:.{digits}f}" for name, digits in names]
    return [*f"{result['method']}, seed 0".split(), *numbers]


def test_evaluate_and_predict_take_language_models(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", *map(str, runs)]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "perplexity", "bits/byte", "loss"]
    names = (("perplexity", 2), ("bits_per_byte", 4), ("loss", 4))
    assert [line.split() for line in lines] == [shown(run, names) for run in runs]
    text = tmp_path / "texts" / "some.txt"
    text.parent.mkdir()
    text.write_text("one two\nthree, four\n")
    assert main(["evaluate", str(runs[0]), "--root", str(text)]) == 0
    expected = evaluated(runs[0], text)
    assert capsys.readouterr().out.split()[-3:-1] == [
        f"{expected['perplexity']:.2f}",
        f"{expected['bits_per_byte']:.4f}",
    ]
    assert main(["predict", str(runs[0]), str(text)]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [list(row) for row in predicted(runs[0], [text])]
    assert main(["predict", str(runs[0]), str(text.parent)]) == 0
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == rows
    assert main(["predict", str(runs[0]), str(text), "--out", str(tmp_path / "rows.csv")]) == 0
    assert capsys.readouterr().out == f"2 lines: {tmp_path / 'rows.csv'}\n"
    assert list(csv.reader((tmp_path / "rows.csv").read_text().splitlines())) == rows


def test_evaluate_and_predict_take_translators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for part in ("train", "val", "test"):
        (data / f"{part}.en").write_text("one two three\n\nthree one\n" * 5)  # pairs with an empty side are left out
        (data / f"{part}.de").write_text("eins zwei drei\nnull\ndrei eins\n" * 5)
    words = f"train --task translation --root {data} --source en --target de --width 8 --heads 2 --layers 1 --epochs 1"
    assert main([*words.split(), "--vocabulary", "270", "--methods", "adamw:batch=100", "--out", str(out)]) == 0
    (run,) = out.glob("*/seed-0")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--threads", "1"]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "BLEU", "chrF", "loss"]
    assert line.split() == shown(run, (("bleu", 2), ("chrf", 2), ("loss", 4)))
    assert main(["predict", str(run), str(data / "test.en"), "--batch-size", "4"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [list(row) for row in predicted(run, [data / "test.en"])]
    assert len(rows) == 1 + 15


def test_an_experiment_on_text_split_anew_is_measured_on_the_part_that_it_was_tested_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ptb.valid.txt").write_text("one two three\nthree two one\n" * 20)
    (tmp_path / "ptb.test.txt").write_text("two two one\none one three\n" * 20)
    words = f"train --task language --root {tmp_path} --width 4 --layers 1 --window 4 --epochs 1 --all batch=2"
    assert main([*words.split(), "--methods", "adamw", "--out", str(tmp_path / "out")]) == 0
    (run,) = (tmp_path / "out").glob("*/seed-0")
    saved = json.loads((run / "result.json").read_text())["metrics"]
    assert evaluated(run, None) == evaluated(run, tmp_path) == pytest.approx(saved, rel=1e-5)
    assert evaluated(run, tmp_path / "ptb.test.txt") != pytest.approx(saved, rel=1e-3)


def a_transformer(folder: Path) -> tuple[Path, Path]:
    """A text, and a run of a Transformer on it whose windows are shorter."""
    data, out = folder / "data", folder / "out"
    data.mkdir()
    for part in ("train", "valid", "test"):
        (data / f"{part}.txt").write_text("one two three\nthree two one\n" * 20)
    words = f"train --task language --root {data} --network transformer --width 8 --heads 2 --layers 1 --window 6"
    assert main([*words.split(), "--epochs", "1", "--methods", "adamw:batch=2", "--out", str(out)]) == 0
    (run,) = out.glob("*/seed-0")
    return data, run


def test_a_transformer_scores_each_token_of_a_long_text_with_half_a_window_before_it(tmp_path: Path) -> None:
    data, run = a_transformer(tmp_path)
    _, *rows = predicted(run, [data / "test.txt"])
    assert [row[2] for row in rows] == ["4"] * 40
    # The windows after the first begin every three tokens: with four tokens a line the second line's are cut like the fourteenth's.
    assert rows[5][3] == rows[11][3] == rows[17][3] == rows[23][3]
    total = sum(4 * math.log(float(row[3])) for row in rows)
    assert evaluated(run, data)["loss"] == pytest.approx(total / 160, rel=1e-3)


def test_what_evaluate_and_predict_cannot_do_with_text_is_said_in_a_line(
    runs: list[Path], tmp_path: Path, refused
) -> None:
    run = str(runs[0])
    soup = tmp_path / "apart" / "soup.safetensors"
    soup.parent.mkdir()
    assert main(["soup", str(soup), *map(str, runs)]) == 0
    assert "lies in no experiment that says which text" in refused("evaluate", str(soup))
    assert "--data and --split choose images" in refused("evaluate", run, "--split", "train")
    assert "--data and --split choose images" in refused("evaluate", run, "--data", "digits")
    assert "holds no test.txt" in refused("evaluate", run, "--root", str(tmp_path))
    assert "nothing to predict; give text files" in refused("predict", run)
    assert "apart holds no .txt file; give text files" in refused("predict", run, str(soup.parent))
    assert f"there is no {tmp_path / 'none'}" in refused("predict", run, str(tmp_path / "none"))


def test_soups_and_files_of_translators_say_themselves_how_they_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for part in ("train", "val", "test"):
        for ending, words in (("en", "one , two three"), ("de", "eins , zwei drei")):
            (data / f"{part}.{ending}").write_text(f"{words}\n{words} {words} .\n" * 8)
    words = f"train --task translation --root {data} --source en --target de --width 8 --heads 2 --layers 1 --epochs 2"
    words += f" --vocabulary 270 --bleu-tokens char --beam 2 --all batch=100 --out {out} --methods adamw adamw:lr=0.01"
    assert main(words.split()) == 0
    runs = sorted(out.glob("*/seed-0"))
    saved = json.loads((runs[0] / "result.json").read_text())["metrics"]
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((runs[0] / "model.safetensors").read_bytes())
    assert evaluated(alone, data) == evaluated(runs[0], None) == pytest.approx(saved, rel=1e-5)
    soup = tmp_path / "soup.safetensors"
    assert main(["soup", str(soup), *map(str, runs)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(soup), "--root", str(data)]) == 0
    model, subwords = load_translator(soup)
    pairs, _ = read_pairs(data, "test", "en", "de")
    config = TranslationConfig(source="en", target="de", bleu_tokens="char", beam=2)
    scores = TranslationTask(config, Bitext(pairs, pairs, pairs, subwords), torch.device("cpu")).evaluate(model, "test")
    measured = [f"{scores['bleu']:.2f}", f"{scores['chrf']:.2f}", f"{scores['loss']:.4f}"]
    assert capsys.readouterr().out.splitlines()[-1].split() == ["soup", *measured]
    greedy = TranslationTask(replace(config, beam=1), Bitext(pairs, pairs, pairs, subwords), torch.device("cpu"))
    assert evaluated(soup, data, beam=1) == greedy.evaluate(model, "test")
    assert main(["predict", str(soup), str(data / "test.en"), "--beam", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 17
    assert "--beam must be at least 1, got 0" in refused("predict", str(soup), "--beam", "0")
    assert "says from what into what" in refused("evaluate", str(without_reading(alone)), "--root", str(data))


def without_reading(file: Path) -> Path:
    """The network as a file of an earlier version."""
    with safe_open(file, framework="pt") as opened:
        metadata = {key: value for key, value in opened.metadata().items() if not key.endswith("reading")}
    target = file.with_stem("earlier")
    save_file(load_file(file), target, metadata)
    return target


def test_a_file_of_a_transformer_is_read_in_windows_of_its_own_length(tmp_path: Path) -> None:
    data, run = a_transformer(tmp_path)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "model.safetensors").read_bytes())
    assert evaluated(alone, data) == evaluated(run, data)


def test_a_beam_is_for_translators(runs: list[Path], experiment: Path, tmp_path: Path, refused) -> None:
    text = tmp_path / "data" / "test.txt"
    image = str(next(experiment.glob("sgd*/seed-0")))
    for words in (["evaluate", str(runs[0])], ["predict", str(runs[0]), str(text)]):
        assert "--beam 4 is how translations are searched for, and" in refused(*words, "--beam", "4")
    for words in (["evaluate", image], ["predict", image, str(text)]):
        assert "--beam 4 is how translations are searched for, and" in refused(*words, "--beam", "4")


def test_evaluate_refuses_images_beside_text(runs: list[Path], experiment: Path, refused) -> None:
    image = str(next(experiment.glob("sgd*/seed-0")))
    assert "networks of language and no text" in refused("evaluate", str(runs[0]), image)
