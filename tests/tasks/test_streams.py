from __future__ import annotations

from lookaround.tasks.streams import stream_seed


def test_streams_differ_in_every_part_and_in_their_order():
    seeds = [stream_seed(*parts) for parts in ((0, 1), (1, 0), (0, "1"), (0, 1, 0), ("order", 0), ("copy", 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
