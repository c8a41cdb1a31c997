"""Branches on real replica groups: torchft's lighthouse, one process each, some of them killed by SIGKILL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from replica_on_each import start
from replica_reference import D, K, by_hand, same

pytestmark = pytest.mark.ft
pytest.importorskip("torchft")

ROUNDS, ALL = 7, {"together": 3}


def served(least):
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(
        bind="[::]:0", min_replicas=least, join_timeout_ms=120_000, quorum_tick_ms=20, heartbeat_timeout_ms=3000
    )
    yield server.address()
    server.shutdown()


@pytest.fixture
def lighthouse():
    """The address of a lighthouse for which two are enough to go on."""
    yield from served(2)


@pytest.fixture
def lighthouse_for_one():
    yield from served(1)


def end_well(folder, processes):
    for process in processes.values():
        process.join(300)
    codes = {name: process.exitcode for name, process in processes.items()}
    assert set(codes.values()) == {0}, (codes, {name: (folder / f"log-{name}").read_text()[-2000:] for name in codes})


def wait_until(is_so, running):
    while not is_so():
        assert all(process.is_alive() for process in running.values())
        time.sleep(0.05)


def noted(folder, name, what):
    lines = [line.split(" ", 3) for line in (folder / f"journal-{name}").read_text().splitlines()]
    return [line[3] for line in lines if line[2] == what]


def averages(folder, name):
    return {int(path.stem.rpartition("-")[2]): torch.load(path) for path in folder.glob(f"{name}-*.pt")}


def check_against_plain_loops(folder, names):
    """Who has taken all steps of a round takes part in its mean; who leaves it without has taken its state from the first of those."""
    turns = {name: dict(tuple(map(int, t.split())) for t in noted(folder, name, "turn")) for name in names}
    rounds = []
    for number in range(ROUNDS):
        steps = range(number * K, number * K + K)
        holders = {name: of[steps[0]] for name, of in turns.items() if all(step in of for step in steps)}
        beginning = {name for name, of in turns.items() if steps.stop in of}
        rounds.append((holders, {name: min(holders) for name in beginning - holders.keys()}))
    found = {name: averages(folder, name) for name in names}
    for number, mean in enumerate(by_hand(rounds), start=1):
        for name in names:
            if number in found[name]:
                same(found[name][number], mean)
    return rounds


@pytest.mark.parametrize("size", [2, 3])
def test_without_faults_they_are_the_nested_loops_bit_for_bit(tmp_path, size, lighthouse):
    names = "abc"[:size]
    end_well(tmp_path, {n: start(tmp_path, n, lighthouse, i, together=size) for i, n in enumerate(names)})
    rounds = check_against_plain_loops(tmp_path, names)
    expected = [{n: (t * size + i) % D for i, n in enumerate(names)} for t in range(ROUNDS)]
    assert rounds == [(holders, {}) for holders in expected]
    assert all(len(averages(tmp_path, name)) == ROUNDS for name in names)


def test_one_is_killed_the_others_go_on_and_it_heals_when_it_is_back(tmp_path, lighthouse):
    running = {name: start(tmp_path, name, lighthouse, **ALL, waits=12 if name == "a" else -1) for name in "ac"}
    killed = start(tmp_path, "b", lighthouse, **ALL, dies=4)
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL
    wait_until(lambda: len(averages(tmp_path, "a")) == 4, running)  # and now it waits
    running["b"] = start(tmp_path, "b", lighthouse, seed=9)
    wait_until(lambda: len(noted(tmp_path, "b", "begins")) == 2, running)
    (tmp_path / "back").touch()
    end_well(tmp_path, running)
    lost = "branch 1 did not come to the average of round 1: the mean is over 0, 2, divided by 2"
    for name in "ac":
        said = noted(tmp_path, name, "warning")
        assert len(said) == 1
        assert lost in said[0]
    rounds = check_against_plain_loops(tmp_path, "abc")
    three = {"a": 0, "b": 1, "c": 2}
    assert rounds[0] == (three, {})
    assert [set(holders) for holders, _ in rounds[1:5]] == [set("ac")] * 4
    assert [healed for _, healed in rounds] == [{}, {}, {}, {}, {"b": "a"}, {}, {}]
    assert rounds[5:] == [(three, {})] * 2


@pytest.mark.parametrize("outer", [0, 1])
def test_a_commit_that_fails_for_all_is_taken_again_and_loses_nothing(tmp_path, lighthouse, outer):
    failing, undisturbed = tmp_path / "failing", tmp_path / "undisturbed"
    for folder, fails in ((failing, 3), (undisturbed, -1)):
        folder.mkdir()
        end_well(folder, {n: start(folder, n, lighthouse, **ALL, outer=outer, fails=fails) for n in "abc"})
    for name in "abc":
        assert [said for said in noted(failing, name, "warning") if "told to fail" in said and "(try 2)" in said]
        assert len(averages(failing, name)) == ROUNDS
        for number, found in averages(failing, name).items():
            same(found, averages(undisturbed, name)[number])


def test_a_commit_that_fails_for_one_alone_has_it_heal_from_those_who_went_on(tmp_path, lighthouse):
    end_well(tmp_path, {n: start(tmp_path, n, lighthouse, **ALL, fails=3 if n == "c" else -1) for n in "abc"})
    assert "told to fail" in noted(tmp_path, "c", "warning")[0]
    assert noted(tmp_path, "a", "warning") == noted(tmp_path, "b", "warning")
    assert "branch 2 did not come to the average of round 3" in noted(tmp_path, "a", "warning")[0]
    found = {name: averages(tmp_path, name) for name in "abc"}
    assert sorted(found["a"]) == sorted(found["b"]) == [*range(1, ROUNDS + 1)]
    assert sorted(found["c"]) == [1, 2, 4, 5, 6, 7]
    for number, weights in found["a"].items():
        for name in "bc":
            if number in found[name]:
                same(found[name][number], weights)


def test_too_few_replica_groups_are_an_error_that_says_how_many_it_takes(tmp_path, lighthouse):
    alone = start(tmp_path, "a", lighthouse, least=2, limit=3)
    alone.join(300)
    assert alone.exitcode == 1
    log = (tmp_path / "log-a").read_text()
    assert "LostReplicasError: no quorum for the start within 3 s: it takes at least 2 replica groups" in log
    assert "this one has met no other yet" in log


def test_a_replica_group_of_two_processes_dies_under_torchrun_and_heals(tmp_path, lighthouse_for_one):
    script = Path(__file__).with_name("replica_ddp.py")
    here, tests = str(script.parent), str(script.parent.parent)
    path = os.pathsep.join([here, tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    running = []
    for name, dies in (("a", "0"), ("b", "1")):
        words = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "3", str(script), str(tmp_path), name, dies]
        with (tmp_path / f"log-{name}").open("w") as log:
            environment = {
                **os.environ,
                "PYTHONPATH": path,
                "TORCHFT_LIGHTHOUSE": lighthouse_for_one,
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, "-m", "torch.distributed.run", *words]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    codes = [process.wait(500) for process in running]
    assert codes == [0, 0], (tmp_path / "log-a").read_text()[-3000:] + (tmp_path / "log-b").read_text()[-3000:]
    log = (tmp_path / "log-a").read_text()
    assert "branch 1 did not come to the average of round 1: the mean is over 0, divided by 1" in log
    of_a = averages(tmp_path, "a-0")
    assert sorted(of_a) == [*range(1, 9)]
    for who in ("a-1", "b-0", "b-1"):
        found = averages(tmp_path, who)
        assert 8 in found
        for number, weights in found.items():
            same(weights, of_a[number])
    turns = [tuple(map(int, line.split())) for line in (tmp_path / "turns-a-0").read_text().splitlines()]
    alone = {number: branch for number, branch in turns if number in (2, 3)}
    assert alone == {2: 0, 3: 1}  # in turn: one replica group for two branches
