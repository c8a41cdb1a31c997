"""A call in a thread of its own."""

from threading import Event, get_ident

import pytest
import torch

from lookaround.optim.background import Background

CPU = torch.device("cpu")


def test_it_goes_on_beside_whoever_made_it():
    come = Event()
    made = Background(lambda: (come.wait(60), get_ident()), CPU)
    come.set()
    answer = made.wait()
    assert answer[0]
    assert answer[1] != get_ident()
    assert made.wait() is answer


def test_what_it_raises_is_raised_where_it_is_waited_for_every_time():
    def fails():
        raise KeyError("gone")

    made = Background(fails, CPU)
    made.settle()
    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            made.wait()
