"""Reading text, words and subwords: what comes back is what stands in the file, and what is wrong is said in a line."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lookaround.tasks.text import Subwords, Text, TextError, Words, count_words, find_part, read_text, train_subwords
from lookaround.tasks.text.words import check_seen

LINES = ["low lower lowest", "new newer newest", "the low newest wide", "wide wider widest"] * 3


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return train_subwords([LINES], size=290)


def test_only_line_feeds_end_a_line_so_pairs_cannot_get_out_of_step(tmp_path: Path) -> None:
    path = tmp_path / "train.en"
    path.write_bytes("one\u2028still\x0bone\x85\r\n\r\ntwo".encode())
    assert read_text(path).lines == ("one\u2028still\x0bone\x85", "", "two")


def test_a_byte_order_mark_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n")
    assert read_text(tmp_path / "a.txt").lines == ("one",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: there is not a word in it"),
        (b" \n\t\n\n", "is empty: there is not a word in it"),
        (b"good\nbad \xff\xfe\n", "is not UTF-8: byte 0xff in line 2; convert it"),
        ("über".encode("latin-1"), "is not UTF-8: byte 0xfc in line 1; convert it"),
        (b"one\ntw\0o\n", "is no text: there is a zero byte in line 2"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "train.txt").write_bytes(content)
    with pytest.raises(TextError, match=r"train\.txt") as caught:
        read_text(tmp_path / "train.txt")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_and_pipes_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path, tmp_path / "pipe.txt"):
        with pytest.raises(TextError, match="is no regular file"):
            read_text(path)
    with pytest.raises(TextError, match="there is no"):
        read_text(tmp_path / "absent.txt")


def test_parts_are_found_under_the_names_that_data_sets_have(tmp_path: Path) -> None:
    for name in ("ptb.train.txt", "val.de", "test_2016_flickr.de", "train.de"):
        (tmp_path / name).write_text("a\n")
    found = {
        (part, ending): getattr(find_part(tmp_path, part, ending), "name", None)
        for part in ("train", "valid", "test")
        for ending in ("txt", "de")
    }
    assert found == {
        ("train", "txt"): "ptb.train.txt",
        ("train", "de"): "train.de",
        ("valid", "txt"): None,
        ("valid", "de"): "val.de",
        ("test", "txt"): None,
        ("test", "de"): "test_2016_flickr.de",
    }
    (tmp_path / "test_2017_flickr.de").write_text("a\n")
    with pytest.raises(TextError, match="several files for test: test_2016_flickr"):
        find_part(tmp_path, "test", "de")


def test_bytes_count_the_ends_of_lines() -> None:
    assert Text("t", ("näh", "", "b")).bytes == 5 + 1 + 2


def test_words_are_numbered_by_frequency_then_by_the_alphabet() -> None:
    words = count_words(Text("t", ("b a b", "c a b", "<unk> d")), min_count=2)
    assert words.words == ("<unk>", "<eos>", "b", "a")
    assert words.encode(("a d b", "")) == [3, 0, 2, 1, 1]
    assert words.decode([3, 0, 2]) == "a <unk> b"


def test_a_vocabulary_needs_words_and_its_own_marks_are_not_taken() -> None:
    with pytest.raises(TextError, match="no word occurs 5 times"):
        count_words(Text("t", ("a b",)), min_count=5)
    with pytest.raises(TextError, match="has the word <eos>"):
        count_words(Text("t", ("a <eos>",)))


def test_a_word_never_seen_is_unknown_only_if_the_unknown_word_was_trained() -> None:
    train, other = Text("train.txt", ("a b", "a c")), Text("test.txt", ("a", "b frob nicate"))
    with pytest.raises(TextError) as caught:
        check_seen(count_words(train), train, [other])
    said = str(caught.value)
    assert said.startswith("test.txt, line 2: 'frob' is never seen in training (nor are 1 other words)")
    assert "\n" not in said
    notes = check_seen(count_words(train, min_count=2), train, [other])  # b and c train the unknown word
    assert notes == ["test.txt: 3 of 4 words are never seen in training and read as <unk>"]
    marked = Text("train.txt", ("a b frob", "nicate <unk>"))
    assert check_seen(count_words(marked), marked, [other]) == []


@settings(deadline=None, max_examples=200)
@example(line="</s>")
@given(line=st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=30))
def test_any_text_comes_back_from_its_subwords_but_for_a_space_before_it(subwords: Subwords, line: str) -> None:
    for numbers in (*subwords.encode([line]), *subwords.drop([line], 0.5, 0)):
        assert subwords.decode(numbers) == line.removeprefix(" ")


def test_without_dropout_our_merges_are_the_librarys(subwords: Subwords) -> None:
    lines = [*LINES, "lowerest of wines", "x", "", "zwölf Boxkämpfer"]
    assert subwords.drop(lines, 0.0, 3) == subwords.encode(lines)


def test_with_full_dropout_every_byte_stands_alone(subwords: Subwords) -> None:
    (numbers,) = subwords.drop(["lower"], 1.0, 3)
    assert len(numbers) == len(" lower")


def test_dropout_is_decided_by_the_seed(subwords: Subwords) -> None:
    several = [subwords.drop(LINES, 0.3, seed) for seed in (1, 1, 2)]
    assert several[0] == several[1]
    assert several[0] != several[2]
    assert [subwords.decode(line) for line in several[2]] == LINES


def test_training_subwords_twice_gives_the_same(subwords: Subwords) -> None:
    assert train_subwords([LINES[:6], LINES[6:]], size=290).description == subwords.description
    assert Subwords(subwords.description).encode(LINES) == subwords.encode(LINES)


def test_a_vocabulary_that_the_bytes_alone_overfill_is_refused() -> None:
    with pytest.raises(TextError, match="takes at least 260 tokens, got 259"):
        train_subwords([LINES], size=259)
    with pytest.raises(TextError, match="no tokenizer of subwords"):
        Subwords("{}")


def test_a_vocabulary_of_words_knows_its_size() -> None:
    assert len(Words(("<unk>", "<eos>", "a"))) == 3
