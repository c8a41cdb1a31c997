"""The language task: windows that follow each other, copies that differ as they should, and every token counted once."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.running import check_methods, prepare
from lookaround.experiment.training import Training
from lookaround.tasks.language import LanguageConfig, LanguageTask, load_language
from lookaround.tasks.language.corpus import load_corpus
from lookaround.tasks.language.networks import Window
from lookaround.tasks.language.windows import IGNORED, overlapping_readings, recurrent_readings
from lookaround.tasks.text import TextError
from reference.tiny_experiment import Kept

CPU = torch.device("cpu")
SMALL = LanguageConfig(width=8, layers=1, window=5, eval_rows=3, heads=2)


def load(folder: Path, **changes) -> LanguageTask:
    return LanguageTask.load(replace(SMALL, root=str(folder), **changes), CPU)


def test_windows_of_a_row_follow_each_other_and_cover_the_text(folder: Path) -> None:
    batches = load(folder).batches(0, 3, 1)
    assert batches.per_epoch == (60 * 6) // 15
    assert batches.units == 15
    whole = [batches.copy(i, 0) for i in range(batches.per_epoch)]
    assert [batch.inputs.position for batch in whole] == list(range(batches.per_epoch))
    assert {batch.size for batch in whole} == {15}
    rows = torch.cat([batch.inputs.tokens for batch in whole], 1)
    wanted = torch.cat([batch.targets for batch in whole], 1)
    torch.testing.assert_close(wanted[:, :-1], rows[:, 1:])
    torch.testing.assert_close(wanted[:-1, -1], rows[1:, 0])  # a row ends where the next begins
    text = torch.tensor(load(folder).corpus.stream(load(folder).corpus.train))
    ring = rows.flatten()
    places = [i for i in range(len(text)) if torch.equal(text.roll(-i)[: len(ring)], ring)]
    assert places


def test_branches_and_epochs_read_from_places_of_their_own_unless_they_share(folder: Path) -> None:
    own = load(folder).batches(0, 3, 3)
    first = [own.copy(0, branch).inputs.tokens for branch in range(3)]
    later = own.copy(own.per_epoch, 0).inputs.tokens
    assert len({tuple(tokens.flatten().tolist()) for tokens in [*first, later]}) == 4
    shared = load(folder, copies="shared", differences=("windows", "word-dropout", "word-dropout")).batches(0, 3, 3)
    targets = [shared.copy(4, branch).targets for branch in range(3)]
    torch.testing.assert_close(targets[0], targets[1])
    torch.testing.assert_close(targets[0], targets[2])


def test_copies_depend_on_seed_place_and_branch_alone(folder: Path) -> None:
    task = load(folder, tokens="subwords", vocabulary=280, differences=("windows", "word-dropout", "bpe-dropout"))
    forward, back = task.batches(7, 2, 3), task.batches(7, 2, 3)
    places = [(position, branch) for position in (0, 3, forward.per_epoch + 1) for branch in range(3)]
    there = {place: forward.copy(*place) for place in places}
    for place in reversed(places):
        here = back.copy(*place)
        torch.testing.assert_close(here.inputs.tokens, there[place].inputs.tokens, rtol=0, atol=0)
        torch.testing.assert_close(here.targets, there[place].targets, rtol=0, atol=0)
    assert not torch.equal(task.batches(8, 2, 3).copy(0, 0).targets, there[0, 0].targets)


def test_word_dropout_blanks_what_is_read_and_never_what_is_predicted(folder: Path) -> None:
    batches = load(folder, differences=("word-dropout",), word_dropout=0.5).batches(0, 3, 1)
    copies = [batches.copy(i, 0) for i in range(batches.per_epoch)]
    read = torch.cat([copy.inputs.tokens for copy in copies], 1)
    wanted = torch.cat([copy.targets for copy in copies], 1)
    blank = read[:, 1:] == 0
    torch.testing.assert_close(read[:, 1:][~blank], wanted[:, :-1][~blank])
    assert (wanted != 0).all()
    assert 0.4 < blank.float().mean() < 0.6


def test_bpe_dropout_reads_the_same_text_in_other_subwords(folder: Path) -> None:
    task = load(folder, tokens="subwords", vocabulary=300, differences=("bpe-dropout",), bpe_dropout=0.5)
    batches, vocabulary = task.batches(0, 1, 1), task.corpus.vocabulary
    copies = torch.cat([batches.copy(i, 0).inputs.tokens for i in range(batches.per_epoch)], 1)[0].tolist()
    text = " ".join(task.corpus.train.lines)
    sentences = vocabulary.decode(copies).split()
    inner = " ".join(sentences[3:20])
    assert inner.replace(" ", "") in (text + text).replace(" ", "")


@pytest.mark.parametrize("length", [2, 3, 17, 40])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_every_token_is_predicted_once(length: int, rows: int, width: int) -> None:
    stream = torch.arange(length) + 100
    for readings in (recurrent_readings, overlapping_readings):
        counted = []
        for window, targets in readings(stream, rows, width):
            keep = targets != IGNORED
            torch.testing.assert_close(window.tokens[keep] + 1, targets[keep])
            counted += targets[keep].tolist()
        assert sorted(counted) == (stream[1:]).tolist()


def test_windows_of_a_transformer_overlap_by_half() -> None:
    windows = next(iter(overlapping_readings(torch.arange(30), 100, 8)))
    kept = (windows.targets != IGNORED).sum(1)
    assert kept.tolist()[:1] == [8]
    assert set(kept.tolist()[1:]) <= {1, 2, 3, 4}
    firsts = (windows.targets != IGNORED).int().argmax(1)
    assert firsts[1:].eq(4).all()


@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_the_scores_are_those_of_the_probabilities(folder: Path, network: str) -> None:
    task = load(folder, network=network, eval_rows=1, window=100)
    torch.manual_seed(0)
    model = task.network().eval()
    stream = torch.tensor(task.corpus.stream(task.corpus.test))
    with torch.no_grad():
        loss = F.cross_entropy(model(Window(stream[None, :-1]))[0], stream[1:]).item()
    found = task.evaluate(model, "test")
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    size = (folder / "test.txt").stat().st_size
    assert found["bits_per_byte"] == pytest.approx(loss * (len(stream) - 1) / math.log(2) / size, rel=1e-5)


def test_the_loss_is_the_mean_over_tokens_plus_the_penalty(folder: Path) -> None:
    task = load(folder, activation=2.0, dropout=0.0)
    torch.manual_seed(0)
    model = task.network().train()
    batch = task.batches(0, 2, 1).copy(0, 0)
    said = model(batch.inputs)
    expected = F.cross_entropy(said.logits.flatten(0, 1), batch.targets.flatten()) + said.penalty
    torch.testing.assert_close(task.loss(model, batch), expected)
    assert said.penalty > 0


def test_a_saved_network_predicts_the_same(folder: Path, tmp_path: Path) -> None:
    for network, tokens in (("lstm", "words"), ("transformer", "subwords")):
        task = load(folder, network=network, tokens=tokens, vocabulary=280)
        model = task.network().train()
        model(task.batches(0, 2, 1).copy(0, 0).inputs)  # an LSTM now carries something, which is not saved
        task.save(tmp_path / "model.safetensors", model.eval(), {"method": "sgd"})
        loaded, vocabulary = load_language(tmp_path / "model.safetensors")
        assert task.evaluate(loaded, "test") == task.evaluate(model, "test")
        assert vocabulary.encode(["two and two"]) == task.corpus.vocabulary.encode(["two and two"])


def test_holding_out_takes_the_last_lines(folder: Path) -> None:
    task = load(folder).holding_out(0.1)
    assert task.held_out is not None
    assert (len(task.corpus.train.lines), len(task.held_out.lines)) == (54, 6)
    assert task.evaluate(task.network().eval(), "held-out")["loss"] > 0
    assert task.identity() != load(folder).identity()
    with pytest.raises(ValueError, match="no text is held out"):
        load(folder).evaluate(task.network(), "held-out")


def test_without_a_training_text_the_rest_is_split_anew_and_it_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ptb.valid.txt").write_text("".join(f"v{i} <unk>\n" for i in range(4)))
    (tmp_path / "ptb.test.txt").write_text("".join(f"t{i} <unk>\n" for i in range(16)))
    corpus = load_corpus(tmp_path, None, "words", size=300, min_count=1)
    assert [len(text.lines) for text in (corpus.train, corpus.valid, corpus.test)] == [16, 2, 2]
    assert corpus.train.lines[:5] == ("v0 <unk>", "v1 <unk>", "v2 <unk>", "v3 <unk>", "t0 <unk>")
    assert "ptb.valid.txt and ptb.test.txt are split anew, in order, into lines 1-16 to train" in corpus.notes[0]
    assert "never seen in training and read as <unk>" in corpus.notes[1]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no text"),
        ({"train.txt": "a b"}, "has no valid.txt and test.txt"),
        ({"train.en": "a", "train.de": "b"}, "texts that end in de and in en; choose one with --ending"),
        ({"train.txt": "a b", "valid.txt": "a", "test.txt": "c"}, "test.txt, line 1: 'c' is never seen in training"),
        ({"train.txt": "a b", "valid.txt": "", "test.txt": "a"}, "valid.txt is empty"),
        ({"valid.txt": "a"}, "1 lines are too few to split"),
    ],
)
def test_folders_that_cannot_be_used_are_said_in_a_line(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TextError) as caught:
        load(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 1000}, "fewer than a batch of 1 rows times a window of 1000"),
        ({"differences": ("bpe-dropout",)}, "bpe-dropout needs subwords"),
        ({"root": None}, "--task language needs --root"),
        ({"network": "transformer", "heads": 3}, "width must be a multiple of heads, got width 8 and heads 3"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_training(folder: Path, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        LanguageTask.load(replace(SMALL, **{"root": str(folder), **changes}), CPU)
    assert said in str(caught.value)


def test_branches_that_would_not_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="gives branches the very same tokens"):
        LanguageConfig(copies="shared")
    with pytest.raises(ValueError, match="--differences must be one or one a branch"):
        LanguageConfig(differences=("windows", "word-dropout"))


def test_a_text_shorter_than_the_usual_batch_trains_in_smaller_ones(tmp_path: Path) -> None:
    for part, said in (("train", "one two three four five six\n" * 4), ("valid", "one\n"), ("test", "two three\n")):
        (tmp_path / f"{part}.txt").write_text(said)
    options = {"task": "language", "root": str(tmp_path), "width": 4, "layers": 1, "window": 3, "branches": 1}
    options |= {"epochs": 2, "device": "cpu", "threads": 1}
    small = prepare(Plan.from_options({**options, "methods": ["adamw:batch=2"]}))
    assert (
        small.budget == 2 * 15
    )  # an epoch of 28 tokens is one batch of 5 rows of 3: those of 20 and 10 would not fill
    training = Training(small, small.plan.methods[0], 0, tmp_path, Kept())
    assert training.total == 30 // 6
    with pytest.raises(UsageError, match="has 28 tokens, fewer than a batch of 20 rows times a window of 3"):
        check_methods(prepare(Plan.from_options({**options, "methods": ["adamw"]})))
