"""A step that a scaler skips on one row alone: the rows stay together, and go where one process with all branches goes."""

from functools import reduce
from operator import and_
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lookaround.distributed.rows import words
from lookaround.optim.cadence import Place
from reference.processes import fork_on_each


def test_skipped_steps_keep_rows_together(tmp_path):
    output = fork_on_each(Path(__file__).with_name("skipped_on_each.py"), "main", 4, str(tmp_path))
    assert output.count("checked among") == 4 + 3


class Alone:
    """One process with all branches, of which some step in a pass."""

    def __init__(self, k: int, rows: int) -> None:
        self.k, self.branches, self.place = k, range(rows), Place()

    def take(self, stepped: list[bool]) -> None:
        for each in stepped:
            if each:
                self.place.stepped()
            if self.place.following(self.branches, self.k) is None:
                self.place.round_ends(self.branches)
            else:
                self.place.turn_ends(self.branches)


class Rows:
    """A branch a process."""

    def __init__(self, k: int, rows: int) -> None:
        self.k, self.places = k, [Place(branch=row) for row in range(rows)]

    def take(self, stepped: list[bool]) -> None:
        over = {self.turn(row, each) for row, each in enumerate(stepped)}
        assert len(over) == 1  # all come to the average, or none
        missed = self.by_all if over == {True} else 0
        for row, place in enumerate(self.places):
            if over == {True} and not missed:
                place.round_ends(range(row, row + 1))
            else:
                place.turn_ends(range(row, row + 1), missed)

    def turn(self, row: int, stepped: bool) -> bool:
        place = self.places[row]
        if stepped:
            place.stepped()
        place.pass_ends_among_others(int(stepped), 1)
        return place.following(range(row, row + 1), self.k) is None

    @property
    def by_all(self) -> int:
        return reduce(and_, (place.skipped for place in self.places)).bit_count()


@given(
    k=st.integers(1, 5),
    passes=st.integers(1, 4).flatmap(lambda rows: st.lists(st.lists(st.booleans(), min_size=rows, max_size=rows))),
)
def test_rounds_of_rows_end_where_those_of_one_process_end(k, passes):
    rows = len(passes[0]) if passes else 1
    alone, apart = Alone(k, rows), Rows(k, rows)
    for stepped in passes:
        alone.take(stepped)
        apart.take(stepped)
        assert {(place.round, place.step - apart.by_all) for place in apart.places} == {
            (alone.place.round, alone.place.step)
        }


@given(st.integers(0, 2**200 - 1), st.integers(0, 62))
def test_any_number_of_bits_travels(bits, more):
    said = words(bits, 200 + more)
    assert sum(word << 62 * at for at, word in enumerate(said)) == bits
    assert all(0 <= word < 2**62 for word in said)
