from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lookaround.tasks.text.saving import TextError, read_described


def test_a_file_of_something_else_says_what_it_lacks(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(TextError, match=r"is no network saved by .*: its metadata have no lookaround\.architecture$"):
        read_described(path, "language")
    save_file({"weight": torch.zeros(2)}, path, {"lookaround.architecture": '{"task": "translation"}'})
    with pytest.raises(TextError, match=r"holds no network of --task language$"):
        read_described(path, "language")
