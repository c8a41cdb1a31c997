"""Branches over GPUs with NCCL: a smoke test, where there are GPUs."""

from pathlib import Path

import pytest
import torch

from reference.processes import fork_on_each


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_weights_over_nccl():
    size = min(torch.cuda.device_count(), 4)
    output = fork_on_each(Path(__file__).with_name("nccl_on_each.py"), "main", size)
    assert output.count("equal on cuda") == size
