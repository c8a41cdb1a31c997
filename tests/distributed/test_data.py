"""Minibatches and random numbers that do not depend on who asks."""

import subprocess
import sys
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookaround.distributed import BranchBatches, keyed_generator, keyed_seed


@given(
    samples=st.integers(8, 60),
    share=st.integers(1, 4),
    parts=st.sampled_from([1, 2]),
    epoch=st.integers(0, 5),
    branch=st.sampled_from([None, 0, 3]),
)
def test_the_parts_make_up_the_same_minibatches_whatever_their_number(samples, share, parts, epoch, branch):
    def minibatches(part, of):
        batches = BranchBatches(samples, 2 * share, seed=1, branch=branch, part=part, parts=of)
        batches.set_epoch(epoch)
        return [*batches]

    whole = minibatches(0, 1)
    shares = [minibatches(part, parts) for part in range(parts)]
    assert [[*chain.from_iterable(of)] for of in zip(*shares, strict=True)] == whole
    assert len(whole) == samples // (2 * share)
    seen = [*chain.from_iterable(whole)]
    assert len(set(seen)) == len(seen) <= samples
    assert set(seen) <= set(range(samples))


def orders(**settings):
    return {key: [*BranchBatches(50, 10, seed=0, branch=branch)] for key, branch in settings.items()}


def test_branches_draw_from_orders_of_their_own_or_from_one():
    found = orders(first=0, second=1, shared=None)
    assert found["first"] != found["second"] != found["shared"] != found["first"]
    assert orders(first=0)["first"] == found["first"]


def test_every_epoch_and_seed_has_another_order():
    batches = BranchBatches(50, 10, seed=0, branch=1)
    first = [*batches]
    batches.set_epoch(1)
    assert [*batches] != first != [*BranchBatches(50, 10, seed=1, branch=1)]
    batches.set_epoch(0)
    assert [*batches] == first


def test_random_numbers_are_keyed_and_the_same_in_another_process():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    draws = [torch.randint(2**40, (), generator=keyed_generator(*key)).item() for key in keys]
    assert len(set(draws)) == 4
    code = "import torch; from lookaround.distributed import keyed_generator as g; "
    code += f"print(*(torch.randint(2**40, (), generator=g(*key)).item() for key in {keys}))"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert [*map(int, answer.split())] == draws
    assert 0 <= keyed_seed("a", None, 3) < 2**63


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "between 1 and the 10 samples, got 0"),
        ({"batch_size": 11}, "between 1 and the 10 samples, got 11"),
        ({"batch_size": 4, "parts": 3}, "3 processes cannot share minibatches of 4 evenly"),
        ({"batch_size": 4, "parts": 2, "part": 2}, "part has to be between 0 and 1, got 2"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BranchBatches(10, seed=0, **settings)
