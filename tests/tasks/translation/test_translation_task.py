"""The translation task: minibatches by tokens, copies that differ as they should, scores as sacrebleu gives them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import sacrebleu
import torch
from torch.nn import functional as F

from lookaround.tasks.text import Subwords, TextError
from lookaround.tasks.text.subwords import BEGIN, END, PAD
from lookaround.tasks.translation import TranslationConfig, TranslationTask, load_translator
from lookaround.tasks.translation.batches import IGNORED, by_length, cut
from lookaround.tasks.translation.scores import corpus_scores

CPU = torch.device("cpu")
SMALL = TranslationConfig(
    source="en", target="de", width=16, layers=1, heads=2, hidden=16, vocabulary=280, eval_batch=60, longest=60
)


def load(folder: Path, **changes) -> TranslationTask:
    return TranslationTask.load(replace(SMALL, root=str(folder), **changes), CPU)


def test_an_epoch_has_every_pair_once_in_minibatches_of_at_most_so_many_tokens(folder: Path) -> None:
    task = load(folder)
    batches = task.batches(0, 120, 2)
    for epoch in range(2):
        copies = [batches.copy(epoch * batches.per_epoch + i, 1) for i in range(batches.per_epoch)]
        sides = [[], []]
        for inputs, targets, size in copies:
            assert inputs.source.numel() <= 120
            assert targets.numel() <= 120
            assert size == (targets != IGNORED).sum()
            sides[0] += [task.bitext.subwords.decode(row[row > END].tolist()) for row in inputs.source]
            sides[1] += [task.bitext.subwords.decode(row[row > END].tolist()) for row in targets]
        pairs = zip(task.bitext.train.source.lines, task.bitext.train.target.lines, strict=True)
        assert sorted(zip(*sides, strict=True)) == sorted(pairs)
        assert sum(copy.size for copy in copies) == pytest.approx(batches.units * batches.per_epoch, rel=0.02)


def test_the_pairs_are_encoded_once_for_all_runs_and_anew_where_a_part_is_held_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, sizes = load(folder), []
    encode = Subwords.encode
    monkeypatch.setattr(Subwords, "encode", lambda self, lines: sizes.append(len(lines)) or encode(self, lines))
    for seed, batch, branches in ((0, 120, 1), (1, 120, 3), (0, 60, 3)):
        task.batches(seed, batch, branches).copy(0, 0)
    assert sizes == [80, 80]
    del sizes[:]
    rest = task.holding_out(0.25)
    for seed in (0, 1):
        rest.batches(seed, 120, 1)
    assert sizes == [60, 60]


def test_what_is_read_is_what_was_to_be_said_a_step_before(folder: Path) -> None:
    inputs, targets, _ = load(folder).batches(0, 120, 1).copy(0, 0)
    assert (inputs.target[:, 0] == BEGIN).all()
    inside = targets[:, :-1] != IGNORED
    following = inputs.target[:, 1:]
    torch.testing.assert_close(following[inside & (following != PAD)], targets[:, :-1][inside & (following != PAD)])
    ends = (targets == END).sum(1)
    assert ends.eq(1).all()


def test_copies_depend_on_seed_place_and_branch_alone_and_branches_differ(folder: Path) -> None:
    task = load(folder, differences=("order", "word-dropout", "bpe-dropout"), bpe_dropout=0.5, word_dropout=0.3)
    forward, back = task.batches(7, 120, 3), task.batches(7, 120, 3)
    places = [(position, branch) for position in (0, 2, forward.per_epoch + 1) for branch in range(3)]
    there = {place: forward.copy(*place) for place in places}
    for place in reversed(places):
        here = back.copy(*place)
        for one, other in zip(here.inputs[:2], there[place].inputs[:2], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        torch.testing.assert_close(here.targets, there[place].targets, rtol=0, atol=0)
    shared = load(folder, copies="shared", differences=("order", "word-dropout", "bpe-dropout"), word_dropout=0.5)
    plain, blanked, dropped = (shared.batches(7, 120, 3).copy(1, branch) for branch in range(3))
    torch.testing.assert_close(plain.targets, blanked.targets)
    blank = plain.inputs.source != blanked.inputs.source
    assert (blanked.inputs.source[blank] == END).all()
    assert 0.3 < blank[plain.inputs.source > END].float().mean() < 0.7
    decode = shared.bitext.subwords.decode
    said = [[decode(row[row > END].tolist()) for row in copy.targets] for copy in (plain, dropped)]
    assert said[0] == said[1]
    assert dropped.size > plain.size


def test_lengths_are_sorted_and_cut_once_for_all_epochs() -> None:
    lengths = torch.tensor([[3, 1, 2, 3, 1, 9], [2, 1, 5, 2, 1, 1]])
    generator = torch.Generator().manual_seed(0)
    orders = {tuple(by_length(lengths, generator).tolist()) for _ in range(50)}
    assert len(orders) == 4  # pairs 1 and 4, and pairs 0 and 3, change places
    assert {order[-1] for order in orders} == {5}
    sides = torch.tensor([[3, 1], [1, 3]])  # as long, whichever side is
    assert {tuple(by_length(sides, generator).tolist()) for _ in range(50)} == {(0, 1), (1, 0)}
    assert cut(lengths, 12) == [(0, 3), (3, 5), (5, 6)]  # ends included: 2, 2, 4 | 4, 6 | 10
    with pytest.raises(TextError, match="a batch of 9 tokens has no room for a sentence of 10"):
        cut(lengths, 9)


def test_the_loss_is_a_mean_over_the_tokens_of_the_targets_smoothed(folder: Path) -> None:
    task = load(folder, label_smoothing=0.2, dropout=0.0)
    torch.manual_seed(0)
    model = task.network().train()
    batch = task.batches(0, 120, 1).copy(1, 0)
    logits = model(batch.inputs).log_softmax(-1)
    kept = batch.targets != IGNORED
    wanted = batch.targets.clamp(min=0)
    own = -logits.gather(-1, wanted[..., None])[..., 0]
    expected = (0.8 * own + 0.2 * -logits.mean(-1))[kept].mean()
    torch.testing.assert_close(task.loss(model, batch), expected)


@pytest.mark.parametrize("beam", [1, 2])
def test_scores_are_sacrebleus_of_all_sentences_in_their_order_and_the_loss_counts_each_token_once(
    folder: Path, beam: int
) -> None:
    task = load(folder, beam=beam)
    torch.manual_seed(0)
    model = task.network().eval()
    found = task.evaluate(model, "test")
    losses, count = 0.0, 0
    from lookaround.tasks.translation.batches import padded
    from lookaround.tasks.translation.decoding import translate

    said = []
    for one, other in zip(task.bitext.test.source.lines, task.bitext.test.target.lines, strict=True):
        source, target = task.bitext.subwords.encode([one]), task.bitext.subwords.encode([other])
        inputs, targets = padded(source, target)
        with torch.no_grad():
            losses += F.cross_entropy(model(inputs)[0], targets[0], reduction="sum").item()
        count += targets.numel()
        said.append(task.bitext.subwords.decode(translate(model, inputs.source, task.config.search)[0]))
    assert found["loss"] == pytest.approx(losses / count, rel=1e-5)
    references = [list(task.bitext.test.target.lines)]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, references).score, abs=1e-5)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, references).score, abs=1e-5)


def test_a_saved_network_translates_the_same(folder: Path, tmp_path: Path) -> None:
    task = load(folder)
    model = task.network().eval()
    task.save(tmp_path / "model.safetensors", model, {"method": "sgd"})
    loaded, subwords = load_translator(tmp_path / "model.safetensors")
    assert task.evaluate(loaded, "test") == task.evaluate(model, "test")
    assert subwords.description == task.bitext.subwords.description
    with pytest.raises(TextError, match="no network saved by lookaround train"):
        load_translator(folder / "train.en")


def test_holding_out_sets_pairs_aside(folder: Path) -> None:
    task = load(folder).holding_out(0.25)
    assert task.held_out is not None
    assert (len(task.bitext.train), len(task.held_out)) == (60, 20)
    assert task.evaluate(task.network().eval(), "held-out")["loss"] > 0
    with pytest.raises(ValueError, match="no pairs are held out"):
        load(folder).evaluate(task.network(), "held-out")
    with pytest.raises(ValueError, match="--hold-out takes a part"):
        load(folder).holding_out(1.0)


@pytest.mark.parametrize(
    ("part", "content", "said"),
    [
        ("train.de", b"eins .\n", "train.en has 80 lines and"),
        ("train.de", b"", "train.de is empty"),
        ("val.en", b"\xff\n", "val.en is not UTF-8: byte 0xff in line 1"),
        ("test_2016.de", None, "holds no test.de"),
    ],
)
def test_pairs_that_cannot_be_used_are_said_in_a_line(
    folder: Path, tmp_path: Path, part: str, content: bytes | None, said: str
) -> None:
    for path in folder.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / part).unlink()
    if content is not None:
        (tmp_path / part).write_bytes(content)
    with pytest.raises(TextError) as caught:
        load(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": None}, "say from what into what, --source and --target; it has train.de, train.en"),
        ({"source": "de"}, "--source and --target are both de"),
        ({"source": "fr"}, "holds no train.fr"),
        ({"root": None}, "--task translation needs --root"),
        ({"bleu_tokens": "x"}, "--bleu-tokens takes "),
        ({"longest": 1}, "every pair has more than 1 subwords"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(folder: Path, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        TranslationTask.load(replace(SMALL, **{"root": str(folder), **changes}), CPU)
    assert said in str(caught.value)


def test_empty_sides_long_pairs_and_unseen_subwords_are_noted(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for ending, lines in (("en", "\nseven\n" + "one " * 80 + "\n"), ("de", "eins\n \n" + "eins " * 80 + "\n")):
        with (tmp_path / f"train.{ending}").open("a", encoding="utf-8") as file:
            file.write(lines)
    for ending in ("en", "de"):
        with (tmp_path / f"test_2016.{ending}").open("a", encoding="utf-8") as file:
            file.write("Ω\n")
    notes = load(tmp_path).notes
    assert any("train: 2 pairs with an empty side are left out" in note for note in notes)
    assert any("1 training pairs of more than 60 subwords are left out" in note for note in notes)
    assert any("test_2016.en, line 13:" in note and "never seen in training" in note for note in notes)


def test_bleu_of_nothing_is_nothing() -> None:
    assert corpus_scores([""], ["eins zwei"], "13a") == {"bleu": 0.0, "chrf": 0.0}
