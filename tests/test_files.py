"""A file is the old one or the new one, whatever stops the writing and however many processes write it at once."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import lookaround.files
from lookaround.files import atomic, atomic_folder, is_partial

NOBODY = 65534


def names(folder):
    return sorted(os.listdir(folder))


# A child loads the one file: the package would import torch, in each of them.
FILES_ALONE = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
writes, path = getattr(files, sys.argv[2]), Path(sys.argv[3])
"""


def child(script, writes, path, *words):
    source = lookaround.files.__file__
    return subprocess.Popen([sys.executable, "-c", FILES_ALONE + script, source, writes.__name__, path, *words])


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
    assert names(tmp_path) == ["file"]
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
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("writes", [atomic, atomic_folder])
def test_a_folder_that_is_not_there_is_named_by_the_file_that_was_to_be_written(tmp_path, writes):
    path = tmp_path / "no" / "file"
    with pytest.raises(FileNotFoundError) as caught, writes(path):
        pytest.fail("nothing can be written")
    assert caught.value.filename == str(path)


FORBIDDEN = f"""
os.setuid({NOBODY})
try:
    with writes(path):
        sys.exit("it was written")
except PermissionError as error:
    sys.exit(error.filename != str(path))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("writes", [atomic, atomic_folder])
def test_a_folder_that_may_not_be_written_is_named_by_the_file_before_anything_is_made(tmp_path, writes):
    path = tmp_path / "file"
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH)

    assert child(FORBIDDEN, writes, path).wait() == 0
    assert names(tmp_path) == []


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic(tmp_path / "file"):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")
    assert names(tmp_path) == []


DYING = """
with writes(path) as temporary:
    (temporary if temporary.is_file() else temporary / "part").write_bytes(b"half of someth")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["file", "a [b]*?.txt", "x" * 255, "ö" * 127])
@pytest.mark.parametrize("writes", [atomic, atomic_folder])
def test_what_a_killed_process_left_is_known_and_removed_by_the_next_writer_alone(tmp_path, name, writes):
    path = tmp_path / name

    assert child(DYING, writes, path).wait() == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert is_partial(left)
    assert not is_partial(path)
    with atomic(tmp_path / "another"):
        assert left.exists()
    with writes(path) as alive, writes(path) as second:
        assert not left.exists()
        assert alive.exists()
        assert second.exists()
    assert names(tmp_path) == sorted(["another", name])


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "latest"
    link.symlink_to("elsewhere/file")
    for content in ("made", "replaced"):
        with atomic(link) as temporary:
            assert temporary.parent == tmp_path / "elsewhere"
            temporary.write_text(content)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere" / "file").read_text() == content
    assert names(tmp_path / "elsewhere") == ["file"]


def test_a_link_to_itself_or_into_nowhere_is_an_error_that_names_it(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "astray").symlink_to("no/such/file")
    for name, number in (("circle", errno.ELOOP), ("astray", errno.ENOENT)):
        with pytest.raises(OSError, match=name) as caught, atomic(tmp_path / name):
            pytest.fail("nothing can be written")
        assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
    assert names(tmp_path) == ["astray", "circle"]


def test_folders_and_pipes_are_not_replaced_by_files(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("folder", IsADirectoryError), ("pipe", OSError)):
        with pytest.raises(error) as caught, atomic(tmp_path / name):
            pytest.fail("nothing can be written")
        assert caught.value.filename == str(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_new_file_has_the_permissions_that_files_have_here(tmp_path):
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


WRITER = """
content = sys.argv[4] * 200_000
for _ in range(25):
    if writes is files.atomic:
        with writes(path) as temporary, open(temporary, "w") as file:
            for start in range(0, len(content), 9_999):
                file.write(content[start : start + 9_999])
                file.flush()
    else:
        with writes(path, replaces=lambda folder: True) as temporary:
            for part in "abc":
                (temporary / part).write_text(content)
"""


def whole(path):
    """The rank whose content stands at ``path``, if it is whole and of one writer."""
    parts = [path] if path.is_file() else [path / part for part in "abc"]
    contents = {part.read_text() for part in parts}
    assert len(contents) == 1
    (content,) = contents
    assert content == (content[0] * 200_000)
    return content[0]


@pytest.mark.parametrize("writes", [atomic, atomic_folder])
def test_twelve_processes_write_one_target_and_it_is_always_one_whole(tmp_path, writes):
    path = tmp_path / "target"
    ranks = "abcdefghijkl"
    writers = [child(WRITER, writes, path, rank) for rank in ranks]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if writes is atomic and path.exists():
            seen.add(whole(path))
    assert [writer.wait() for writer in writers] == [0] * len(writers)
    assert seen <= set(ranks)
    assert whole(path) in ranks
    assert names(tmp_path) == ["target"]


def fill(folder: Path, text: str) -> None:
    (folder / "part").write_text(text)


def test_a_folder_takes_the_place_of_nothing_and_of_an_empty_one(tmp_path):
    for name in ("new", "empty"):
        with atomic_folder(tmp_path / name) as temporary:
            fill(temporary, name)
            (tmp_path / "empty").mkdir(exist_ok=True)
        assert (tmp_path / name / "part").read_text() == name
    assert names(tmp_path) == ["empty", "new"]


def test_a_folder_with_something_in_it_is_replaced_only_if_it_may_be(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    fill(path, "old")
    with pytest.raises(FileExistsError) as caught, atomic_folder(path):
        pytest.fail("nothing can be written")
    assert caught.value.filename == str(path)
    with atomic_folder(path, replaces=lambda folder: (folder / "part").read_text() == "old") as temporary:
        fill(temporary, "new")
        assert (path / "part").read_text() == "old"
    assert (path / "part").read_text() == "new"

    def fail():
        with atomic_folder(path, replaces=lambda folder: True) as temporary:
            fill(temporary, "never")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path / "part").read_text() == "new"
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_was_filled_by_another_meanwhile_is_left_alone(tmp_path):
    def write():
        with atomic_folder(tmp_path / "folder") as temporary:
            fill(temporary, "ours")
            (tmp_path / "folder").mkdir()
            fill(tmp_path / "folder", "theirs")

    with pytest.raises(FileExistsError):
        write()
    assert (tmp_path / "folder" / "part").read_text() == "theirs"
    assert names(tmp_path) == ["folder"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "file", replaces=lambda folder: True):
        pytest.fail("nothing can be written")
    assert (tmp_path / "file").read_text() == "here"
