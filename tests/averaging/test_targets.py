"""Wherever an average or a soup is written: the error names the target, a link is followed, the last whole one of several writers wins."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lookaround.averaging import RunningAverage, power, soup_files

NOBODY = 65534
STATE = {"weight": torch.arange(4.0).reshape(2, 2), "bias": torch.ones(2)}


def average():
    model = nn.Linear(2, 2)
    model.load_state_dict(STATE)
    found = RunningAverage(model, power(0.1))
    found.update()
    return found


def of_shards(folder):
    folder.mkdir(exist_ok=True)
    save_file(STATE, folder / "model.safetensors")
    return folder


WRITERS = {
    "export": lambda target, given: average().export(target),
    "store": lambda target, given: average().store(target),
    "soup of files": lambda target, given: soup_files(target, [given / "model.safetensors"] * 2),
    "soup of folders": lambda target, given: soup_files(target, [given, given]),
}
every_writer = pytest.mark.parametrize("name", WRITERS)


@every_writer
def test_a_folder_that_is_not_there_is_named_with_the_target(tmp_path, name):
    given, target = of_shards(tmp_path / "given"), tmp_path / "no" / "target"
    with pytest.raises(FileNotFoundError) as caught:
        WRITERS[name](target, given)
    assert caught.value.filename.startswith(str(target))
    assert os.listdir(tmp_path) == ["given"]


FORBIDDEN = """
import os, sys
from pathlib import Path
from averaging.test_targets import WRITERS
os.setuid(int(sys.argv[1]))
given, locked = Path(sys.argv[2]), Path(sys.argv[3])
for name, write in WRITERS.items():
    target = locked if name == "store" else locked / "target"
    try:
        write(target, given)
        sys.exit(f"{name}: it was written")
    except PermissionError as error:
        if not str(error.filename).startswith(str(target)):
            sys.exit(f"{name}: {error}")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_only_be_read_is_named_with_the_target():
    with tempfile.TemporaryDirectory() as name:  # beside pytest's, whose other runs make theirs private again
        given, locked = of_shards(Path(name) / "given"), Path(name) / "locked"
        locked.mkdir()
        for each in (Path(name), given, *given.iterdir()):
            each.chmod(0o755)
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", FORBIDDEN, str(NOBODY), given, locked]
        done = subprocess.run(command, capture_output=True, text=True, env=paths)
        assert done.returncode == 0, done.stderr
        assert os.listdir(locked) == []


@pytest.mark.parametrize("name", ["export", "soup of files"])
def test_a_link_to_a_file_is_followed(tmp_path, name):
    given = of_shards(tmp_path / "given")
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "target.safetensors"
    target.symlink_to(tmp_path / "elsewhere" / "file")
    for _ in range(2):
        WRITERS[name](target, given)
    assert target.is_symlink()
    assert all(torch.equal(value, STATE[key]) for key, value in load_file(tmp_path / "elsewhere" / "file").items())
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    given = of_shards(tmp_path / "given")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "latest").symlink_to("elsewhere/folder")
    for _ in range(2):
        soup_files(tmp_path / "latest", [given, given])
        assert (tmp_path / "latest").is_symlink()
        assert os.listdir(tmp_path / "elsewhere") == ["folder"]
    assert all(
        torch.equal(value, STATE[key])
        for key, value in load_file(tmp_path / "elsewhere" / "folder" / "model.safetensors").items()
    )


def test_of_two_writers_each_has_a_temporary_name_of_its_own_and_the_last_whole_file_wins(tmp_path, monkeypatch):
    """The second begins and ends while the first has written and not yet put its file in place."""
    given, target = of_shards(tmp_path / "given"), tmp_path / "target.safetensors"
    other = average()
    other.model.weight.data.fill_(7.0)
    other.update()
    replaced, replace = [], os.replace

    def late(source, destination):
        if not replaced:
            replaced.append((source, destination))
            other.export(target)
            assert len([n for n in os.listdir(tmp_path) if n.endswith(".partial")]) == 1
            assert load_file(target)["weight"].max() > 3
        else:
            assert source != replaced[0][0]
        replace(source, destination)

    monkeypatch.setattr(os, "replace", late)
    soup_files(target, [given / "model.safetensors"] * 2)
    assert len(replaced) == 1
    assert torch.equal(load_file(target)["weight"], STATE["weight"])
    assert sorted(os.listdir(tmp_path)) == ["given", "target.safetensors"]
