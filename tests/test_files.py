"""A file is the old one or the new one, whatever stops the writing."""

import errno
import os

import pytest

from lookaround.files import atomic, is_partial


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]
    with atomic(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_on_a_full_disk_the_old_file_stays_and_the_error_names_it(tmp_path, monkeypatch, fails):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space left") as caught, atomic(path, sync=True) as temporary:
        temporary.write_bytes(b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_named_by_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "no" / "file"
    with pytest.raises(FileNotFoundError) as caught, atomic(path) as temporary:
        temporary.write_bytes(b"new")
    assert caught.value.filename == str(path)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic(tmp_path / "file"):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_known_and_overwritten(tmp_path):
    left = tmp_path / ".file.partial"
    left.write_bytes(b"half of someth")
    assert is_partial(left)
    assert not is_partial(tmp_path / "file.partial")
    with atomic(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["file"]
