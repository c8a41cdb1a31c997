from __future__ import annotations

import os

import pytest
import torch

from lookaround.experiment import UsageError
from lookaround.experiment.checkpoints import load_checkpoint, random_state, restore_random_state, save_checkpoint


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_it_comes_back_as_it_was(tmp_path):
    state = {"step": 3, "tensor": torch.randn(3), "nested": {"list": [1.5, "text", None]}}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert loaded == state


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    marker = tmp_path / "was-run"
    save_checkpoint(tmp_path / "c.pt", {"step": Command(f"touch {marker}")})
    with pytest.raises(UsageError, match=r"cannot use checkpoint .*c\.pt: .*; remove its folder"):
        load_checkpoint(tmp_path / "c.pt")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 a broken archive"])
def test_a_damaged_one_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^cannot use checkpoint ") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_cut_short_is_named(tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"tensor": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"^cannot use checkpoint .* it is cut short"):
        load_checkpoint(path)


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    """Torch itself reads a tensor with a flipped bit without a word."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"tensor": torch.arange(50.0)})
    whole = path.read_bytes()
    inside = whole.index(torch.arange(50.0).numpy().tobytes()) + 40
    for place in [inside, *range(0, len(whole), 97), len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(UsageError, match=r"^cannot use checkpoint .*c\.pt: .*; remove its folder"):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert torch.equal(load_checkpoint(path)["tensor"], torch.arange(50.0))


def test_something_else_than_a_state_is_named(tmp_path):
    save_checkpoint(tmp_path / "c.pt", [1, 2])
    with pytest.raises(UsageError, match="it holds list, not dict"):
        load_checkpoint(tmp_path / "c.pt")


def test_random_numbers_go_on_where_they_were():
    state = random_state()
    expected = torch.rand(3)
    restore_random_state(state)
    assert torch.equal(torch.rand(3), expected)
