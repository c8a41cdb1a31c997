"""Checkpoints: written whole or not at all, read without running any code that they contain, and only if no bit has changed."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from lookaround.errors import UsageError
from lookaround.experiment.files import write_atomically

# What follows torch's archive: these words and the archive's SHA-256. Torch reads damaged tensors without a word.
_MARK = b"lookaround sha256"
_DIGEST = hashlib.sha256().digest_size


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` with `torch.save` and its SHA-256, atomically.

    It is serialized in memory first: torch's own writer reports a full disk as an internal error.

    Raises:
        OSError: when it cannot be written; an older checkpoint at ``path`` is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.write(_MARK + digest)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, with its tensors on the CPU.

    Raises:
        UsageError: for a file that is damaged or holds more than tensors and plain containers.
    """
    try:
        state = torch.load(io.BytesIO(_unchanged(path)), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds {type(state).__name__}, not dict")
    except Exception as error:  # a damaged archive can raise nearly anything
        raise damaged(path, error) from error
    return state


def _unchanged(path: Path) -> bytes:
    content = path.read_bytes()
    archive, mark, digest = (
        content[: -len(_MARK) - _DIGEST],
        content[-len(_MARK) - _DIGEST : -_DIGEST],
        content[-_DIGEST:],
    )
    if mark != _MARK:
        raise ValueError("it is cut short, or not a checkpoint of lookaround train")
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("its SHA-256 is not the one it was written with: the file has changed")
    return archive


def damaged(path: Path, error: Exception) -> UsageError:
    """The error to raise when a checkpoint cannot be used; says how to go on without it."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"cannot use checkpoint {path}: {reason}; remove its folder to train that run from its start")


def random_state() -> dict[str, Any]:
    """The state of torch's global generators, on the CPU and, where CUDA is in use, on its devices."""
    in_use = torch.cuda.is_initialized()
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if in_use else []}


def drawn_since(before: dict[str, Any]) -> bool:
    """Whether random numbers have been drawn since `random_state` returned ``before``."""
    now = random_state()
    states = [[of["cpu"], *of["cuda"]] for of in (before, now)]
    return len(states[0]) != len(states[1]) or not all(map(torch.equal, *states))


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state_all(state["cuda"])
