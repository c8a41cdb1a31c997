"""What is lost on the wire, format by format."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookaround.distributed.wire import WIRES


@st.composite
def numbers(draw):
    """Two slices of two blocks of 128, of any size from denormal to large, each block of its own."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    exponents = torch.tensor(draw(st.lists(st.integers(-140, 100), min_size=4, max_size=4)))
    return torch.ldexp(torch.randn(2, 2, 128, generator=generator), exponents.view(2, 2, 1)).flatten(1)


def sent(name, values):
    wire = WIRES[name]
    data = wire.encode(values)
    assert data.dtype == torch.uint8
    assert data.shape[0] == values.shape[0]
    return wire.decode(data, values.dtype)


@given(numbers())
def test_exact_is_exact(values):
    assert torch.equal(sent("exact", values), values)
    assert torch.equal(sent("exact", values.double()), values.double())


@given(numbers())
def test_bfloat16_keeps_eight_bits(values):
    assert torch.equal(sent("bfloat16", values), values.to(torch.bfloat16).float())


@given(numbers())
def test_int8_is_within_half_a_step_of_each_block(values):
    step = values.unflatten(1, (2, 128)).abs().amax(2, keepdim=True) / 127
    error = (sent("int8", values) - values).abs().unflatten(1, (2, 128))
    # A scale that is too small to be a normal number has fewer bits.
    assert (error <= 0.5001 * step + 1e-38).all()


def test_int8_of_zeros_is_zeros_and_of_its_extremes_exact():
    values = torch.zeros(1, 256)
    values[0, :2] = torch.tensor([-127.0, 3.0])
    assert torch.equal(sent("int8", values), values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_does_not_hide_what_is_not_finite(bad):
    values = torch.ones(1, 256)
    values[0, 5] = bad
    got = sent("int8", values)
    assert got[0, :128].isnan().all()
    assert (got[0, 128:] == 1).all()
