from __future__ import annotations

import io

from rich.console import Console

from lookaround.experiment.display import Bar, Lines, display_for, duration

RECORD = {"epoch": 1.5, "train_loss": 0.5, "metrics": {"top1": 97.25, "nll": 0.2}}


def test_lines_say_run_epoch_loss_accuracy_and_the_time_left():
    written: list[str] = []
    seconds = iter([100.0, 103.0])
    with Lines(written.append, lambda: next(seconds)) as display:
        display.begin(3)
        display.run("sgd, seed 0", 30, 40)
        for _ in range(10):
            display.minibatch(0.7)
        display.run("sam, seed 0", 0, 20)
        for _ in range(5):
            display.minibatch(None)
        display.epoch(RECORD)
        display.note("a note")
    # A quarter of the first run and a quarter of the second took 3 s; three quarters of the second and the third remain.
    assert written == ["sam, seed 0 | epoch 1.5 | loss 0.5000 | top1 97.25 | 0:10 left", "a note"]


def test_a_part_of_an_epoch_is_shown_to_two_places():
    written: list[str] = []
    with Lines(written.append, lambda: 0.0) as display:
        display.begin(1)
        display.run("sgd, seed 0", 0, 40)
        display.epoch({**RECORD, "epoch": 1.2005208})
    assert written[0].startswith("sgd, seed 0 | epoch 1.2 | ")


def test_the_bar_shows_run_loss_accuracy_and_the_time_left():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    display = display_for(console)
    assert isinstance(display, Bar)
    with display:
        display.begin(2)
        display.run("lookaround, seed 2", 3, 6)
        for loss in (0.7, None, 0.25):
            display.minibatch(loss)
        display.epoch(RECORD)
        display.note("a [note]")
        display._progress.refresh()
    shown = stream.getvalue()
    for part in ("lookaround, seed 2", "50%", "loss 0.250", "top1 97.25", "left", "a [note]"):
        assert part in shown


def test_a_pipe_gets_lines_at_once():
    stream = io.StringIO()
    display = display_for(Console(file=stream))
    assert isinstance(display, Lines)
    display.note("text")
    assert stream.getvalue() == "text\n"


def test_durations():
    assert [duration(value) for value in (0.4, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1 h 00 min"]
