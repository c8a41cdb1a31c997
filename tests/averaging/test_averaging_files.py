"""The safetensors files written here are those the reference implementation reads, and the other way round."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lookaround.averaging.files import read_header, save_tensors

DTYPES = [
    *(
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
    ),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
    ),
]


def tensors():
    named = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in reversed(DTYPES)}
    return named | {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "strided": torch.arange(6.0).reshape(2, 3).T,
    }


def test_the_reference_implementation_reads_what_is_written(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, tensors(), {"key": "värde"})
    loaded = load_file(path)
    for name, value in tensors().items():
        assert loaded[name].dtype == value.dtype
        assert (
            torch.equal(loaded[name].view(torch.uint8), value.contiguous().view(torch.uint8)) if value.dim() else True
        )
    assert loaded["scalar"] == 3.0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"key": "värde"}
    places, metadata = read_header(path)
    assert metadata == {"key": "värde"}
    assert all(place.start % place.dtype.itemsize == 0 for place in places.values())


def test_what_the_reference_implementation_writes_is_read(tmp_path):
    path = tmp_path / "t.safetensors"
    state = {name: value.contiguous() for name, value in tensors().items()}
    save_file(state, path)
    places, metadata = read_header(path)
    assert metadata == {}
    assert {name: (p.dtype, p.shape) for name, p in places.items()} == {
        n: (v.dtype, tuple(v.shape)) for n, v in state.items()
    }
    assert list(places.values()) == sorted(places.values(), key=lambda p: p.start)


def test_unknown_dtypes_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"'w' has dtype torch.complex128"):
        save_tensors(tmp_path / "t.safetensors", {"w": torch.zeros(1, dtype=torch.complex128)}, {})
    assert os.listdir(tmp_path) == []
