from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lookaround.experiment.records import METRICS, Records, read_records


def record(step: int, loss: float) -> dict[str, object]:
    return {"step": step, "metrics": {"loss": loss}}


def test_records_come_back_in_order(tmp_path):
    with Records(tmp_path, 0) as records:
        records.write(record(4, 0.5))
        assert read_records(tmp_path / METRICS) == [record(4, 0.5)]
        records.write(record(8, 0.25))
    assert read_records(tmp_path / METRICS) == [record(4, 0.5), record(8, 0.25)]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    with Records(tmp_path, 0) as records:
        for step in (4, 8, 12):
            records.write(record(step, 1 / step))
    with Records(tmp_path, 8) as records:
        records.write(record(12, 0.5))
    assert read_records(tmp_path / METRICS) == [record(4, 1 / 4), record(8, 1 / 8), record(12, 0.5)]
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("metrics/loss")
    assert [(event.step, event.value) for event in events] == [(4, 0.25), (8, 0.125), (12, 0.5)]


def test_a_line_that_a_killed_process_left_incomplete_is_dropped(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 4, "loss": 1.0}\n{"step": 8, "lo')
    assert read_records(path) == [{"step": 4, "loss": 1.0}]
    with Records(tmp_path, 4):
        assert path.read_text() == '{"step": 4, "loss": 1.0}\n'


def test_a_number_that_is_none_is_refused(tmp_path):
    with Records(tmp_path, 0) as records, pytest.raises(ValueError, match="Out of range float"):
        records.write(record(4, float("nan")))
    assert read_records(tmp_path / METRICS) == []


def _no_space():
    """A real file on which no space is left."""
    return Path("/dev/full").open("a", encoding="utf-8")


def test_a_full_disk_is_an_error_and_what_was_written_stays(tmp_path):
    records = Records(tmp_path, 0)
    records.write(record(4, 0.5))
    records._file.close()
    records._file = _no_space()
    with pytest.raises(OSError, match="No space left on device"), records:
        records.write(record(8, 0.25))
    assert read_records(tmp_path / METRICS) == [record(4, 0.5)]
    assert records._events.file_writer is None
