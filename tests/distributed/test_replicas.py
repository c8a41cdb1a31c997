"""Branches on replica groups that come and go, without torchft: threads with a manager of its interface, and nested loops written out."""

import threading
from copy import deepcopy

import pytest
import torch
from replica_groups import LONG, Fake, KilledError, Lighthouse
from replica_reference import Alone, K, by_hand, mean_over, same, turn
from replica_trainings import SETTINGS, build, state, together, train


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_without_faults_they_are_one_process_with_all_branches_bit_for_bit(size, name):
    lighthouse = Lighthouse(size)
    said, ends = together(
        lighthouse,
        {
            str(i): lambda own, i=i: train(Fake(lighthouse, own), 4, seed=i, branches=size, **SETTINGS[name])
            for i in range(size)
        },
    )
    assert said == []
    alone = train(None, 4, branches=size, **SETTINGS[name])
    for end in ends.values():
        assert end.keys() == alone.keys() == {1, 2, 3, 4}
        for number in alone:
            same(end[number]["model"], alone[number]["model"])


def dies(at_step):
    def hook(step, branch):
        if step == at_step:
            raise KilledError

    return hook


def lives(lighthouse, name, *lives):
    """One life after the other; each but the last is ended by `KilledError`, and the next one waits for its event."""
    for hook, event, seed, seen in lives:
        if event is not None:
            lighthouse.leave(name)
            assert event.wait(LONG)
        try:
            return train(Fake(lighthouse, name), ROUNDS, seed=seed, seen=seen, hook=hook)
        except KilledError:
            pass
    return None


ROUNDS = 6


def test_the_mean_goes_over_those_who_are_left_and_they_take_the_lost_branch_in_turn():
    lighthouse, seen = Lighthouse(3), {name: [] for name in "abc"}
    said, ends = together(
        lighthouse,
        {
            "a": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["a"])),
            "b": lambda own: lives(lighthouse, own, (dies(4), None, 0, seen["b"])),
            "c": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["c"])),
        },
    )
    assert said == [
        "branch 1 did not come to the average of round 1: the mean is over 0, 2, divided by 2; the 2 who are there take its augmentation "
        "in turn from the next round on"
    ]
    turns = {"a": [0, 0, 1, 0, 2, 1], "c": [2, 2, 2, 1, 0, 2]}
    for name, branches in turns.items():
        assert seen[name] == [(step, branch) for i, branch in enumerate(branches) for step in range(i * K, i * K + K)]
    rounds = [({"a": 0, "b": 1, "c": 2}, {}), ({"a": 0, "c": 2}, {})]
    rounds += [({"a": a, "c": c}, {}) for a, c in zip(turns["a"][2:], turns["c"][2:], strict=True)]
    for number, mean in enumerate(by_hand(rounds), start=1):
        same(ends["a"][number]["model"], mean)
        same(ends["c"][number]["model"], mean)


def test_one_that_returns_takes_a_peers_state_and_has_its_weights_bit_for_bit_from_the_next_average_on():
    lighthouse, seen = Lighthouse(3), {name: [] for name in "abc"}
    back = threading.Event()

    def waits_for_b(step, branch):
        if step == 3 * K:
            back.set()
            with lighthouse.changed:
                assert lighthouse.changed.wait_for(lambda: "b" in lighthouse.alive, LONG)

    said, ends = together(
        lighthouse,
        {
            "a": lambda own: lives(lighthouse, own, (waits_for_b, None, 0, seen["a"])),
            "b": lambda own: lives(lighthouse, own, (dies(4), None, 0, []), (lambda s, b: None, back, 7, seen["b"])),
            "c": lambda own: lives(lighthouse, own, (lambda s, b: None, None, 0, seen["c"])),
        },
    )
    assert len(said) == 1
    assert "branch 1 did not come to the average of round 1" in said[0]
    assert sorted(ends["b"]) == [5, 6]  # it has seen the end of round 4, and has no state of its own from before
    assert seen["b"] == [(step, 1) for step in range(4 * K, 6 * K)]
    three = {"a": 0, "b": 1, "c": 2}
    rounds = [(three, {}), ({"a": 0, "c": 2}, {}), ({"a": 1, "c": 2}, {}), ({"a": 0, "c": 1}, {"b": "a"})]
    rounds += [(three, {}), (three, {})]
    for number, mean in enumerate(by_hand(rounds), start=1):
        for name in "abc":
            if number in ends[name]:
                same(ends[name][number]["model"], mean)


# -- averages that fail ------------------------------------------------------------------------------------------------------

# Collectives of a quorum, from 0: what each says; weights to be averaged, their means; statistics, their means; and so on. So by the
# fifth the weights are the average already, and who breaks with the third has sent means to others who have written them by then.
BREAKS = {"half written": (2, True), "before weights": (1, False), "weights written": (4, False)}


def three(lighthouse, rounds=4, **settings):
    return {
        name: lambda own, i=i: train(Fake(lighthouse, own), rounds, seed=i, **settings) for i, name in enumerate("abc")
    }


@pytest.mark.parametrize(
    ("name", "where"),
    [*((name, "half written") for name in SETTINGS), ("outer", "before weights"), ("outer", "weights written")],
)
def test_an_average_that_breaks_is_put_back_and_taken_again_as_if_nothing_had_been(name, where):
    undisturbed, breaking = Lighthouse(3), Lighthouse(3, {(2, 1): BREAKS[where], (4, 0): BREAKS[where]})
    _, expected = together(undisturbed, three(undisturbed, **SETTINGS[name]))
    said, ends = together(breaking, three(breaking, **SETTINGS[name]))
    assert len(breaking.quorums) == len(undisturbed.quorums) + 2
    assert {line.partition(" was not committed")[0] for line in said} == {f"the average of round {i}" for i in (1, 2)}
    assert all("it is taken again (try 2)" in line for line in said)
    for replica in "abc":
        assert ends[replica].keys() == expected[replica].keys()
        for number, found in ends[replica].items():
            same(found["model"], expected[replica][number]["model"])
            same(found["optimizer"], expected[replica][number]["optimizer"])


@pytest.mark.parametrize("name", SETTINGS)
def test_an_average_that_breaks_for_one_alone_is_made_good_by_the_others_at_their_next(name):
    undisturbed = Lighthouse(3)
    together(undisturbed, three(undisturbed, **SETTINGS[name]))
    last = max(call for _, call in undisturbed.quorums[2].sent)
    lighthouse = Lighthouse(3, {(2, 1): (last, True)})
    said, ends = together(lighthouse, three(lighthouse, **SETTINGS[name]))
    assert len(said) == 2
    assert "branch 1 did not come to the average of round 2: the mean is over 0, 2" in said[0]
    assert "the average of round 1 was not committed: the link broke" in said[1]
    assert sorted(ends["b"]) == [1, 3, 4]
    for number, found in ends["b"].items():
        same(found["model"], ends["a"][number]["model"])
        same(found["model"], ends["c"][number]["model"])


def come_late(lighthouse, training):
    """Two train, and a third comes while the first is in round 2."""
    back = threading.Event()

    def waits_for_c(step):
        if step == 2 * K:
            back.set()
            with lighthouse.changed:
                assert lighthouse.changed.wait_for(lambda: "c" in lighthouse.alive, LONG)

    def late(own):
        assert back.wait(LONG)
        return training(own, lambda step: None)

    return {"a": lambda own: training(own, waits_for_c), "b": lambda own: training(own, lambda step: None), "c": late}


def test_one_that_returns_takes_the_place_in_the_loop_and_what_else_the_manager_knows():
    lighthouse = Lighthouse(2)

    def training(own, hook):
        manager = Fake(lighthouse, own)
        model, optimizer = build(manager)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        manager.register_state_dict_fn("scheduler", scheduler.load_state_dict, scheduler.state_dict)
        steps = iter(range(1000))
        for step, branch in optimizer.around(steps):
            if manager.step > 5:
                break
            hook(step)
            turn(model, optimizer, branch, optimizer.batches_done)
            scheduler.step()
        return state(model, optimizer)["model"], scheduler.last_epoch, scheduler.get_last_lr(), optimizer.batches_done

    _, ends = together(lighthouse, come_late(lighthouse, training))
    for end in ends.values():
        same(end[0], {**ends["a"][0]})
        assert end[1:] == ends["a"][1:]


def test_all_go_on_from_the_checkpoint_of_one_of_them():
    first, second, saved = Lighthouse(3), Lighthouse(3), {}

    def before(own):
        model, optimizer = build(manager := Fake(first, own))
        for step in range(2 * K):
            for branch in optimizer.around():
                turn(model, optimizer, branch, step)
        if own == "b":
            saved.update(
                deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": manager.step})
            )

    def after(own):
        model, optimizer = build(manager := Fake(second, own), seed=8)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(deepcopy(saved["optimizer"]))
        manager.step, turns = saved["step"], []
        for step in range(2 * K, 3 * K):
            for branch in optimizer.around():
                turns.append(branch)
                turn(model, optimizer, branch, step)
        return turns, model.state_dict()

    together(first, dict.fromkeys("abc", before))
    said, ends = together(second, dict.fromkeys("abc", after))
    assert said == []
    members = []
    for branch, name in enumerate("abc"):
        assert ends[name][0] == [branch] * K
        members.append(Alone())
        members[-1].model.load_state_dict(saved["model"])
        for i, param in enumerate(members[-1].model.parameters()):
            buffer = saved["optimizer"]["state"][i]["momentum_buffer"]
            members[-1].inner.state[param]["momentum_buffer"] = buffer.clone()
        members[-1].round(branch, 2)
    mean = mean_over(members)
    for _, found in ends.values():
        same(found, mean)


def test_one_that_begins_from_a_checkpoint_as_new_as_the_others_last_average_heals_all_the_same():
    lighthouse = Lighthouse(2)

    def training(own, hook):
        manager = Fake(lighthouse, own)
        if own == "c":
            manager.step = 3  # that of the others in round 2: the start, and two averages
        return train(manager, 4, seed=own == "c", hook=lambda step, branch: hook(step))

    said, ends = together(lighthouse, come_late(lighthouse, training))
    assert any("a replica group begins where others end a round: it takes their state first" in line for line in said)
    rounds = [({"a": 0, "b": 1}, {}), ({"a": 2, "b": 0}, {}), ({"a": 1, "b": 2}, {"c": "a"})]
    rounds += [({"a": 0, "b": 1, "c": 2}, {})]
    assert sorted(ends["c"]) == [4]
    for number, mean in enumerate(by_hand(rounds), start=1):
        for end in ends.values():
            if number in end:
                same(end[number]["model"], mean)


def test_one_that_breaks_while_it_heals_is_no_part_of_a_mean_until_an_average_is_committed():
    lighthouse = Lighthouse(2, {(3, 1): (2, False)})
    back = threading.Event()

    def waits_for_c(step, branch):
        if step == 2 * K:
            back.set()
            with lighthouse.changed:
                assert lighthouse.changed.wait_for(lambda: "c" in lighthouse.alive, LONG)

    def late(own):
        assert back.wait(LONG)
        return train(Fake(lighthouse, own), ROUNDS, seed=5)

    said, ends = together(
        lighthouse,
        {name: lambda own: train(Fake(lighthouse, own), ROUNDS, hook=waits_for_c) for name in "ab"} | {"c": late},
    )
    assert any("the average of round 2 was not committed" in line for line in said)
    rounds = [({"a": 0, "b": 1}, {}), ({"a": 2, "b": 0}, {}), ({"a": 1, "b": 2}, {"c": "a"})]
    rounds += [({"a": 0, "b": 1, "c": 2}, {})] * 3
    for number, mean in enumerate(by_hand(rounds), start=1):
        for name in "abc":
            if number in ends[name]:
                same(ends[name][number]["model"], mean)
    assert sorted(ends["c"]) == [4, 5, 6]


def test_a_branch_that_is_not_finite_is_left_out_and_takes_anothers_inner_state():
    lighthouse = Lighthouse(3)

    def spoil(model):
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))

    def training(own):
        model, optimizer = build(Fake(lighthouse, own))
        for step in range(2 * K):
            for branch in optimizer.around():
                turn(model, optimizer, branch, step)
                if step == K - 1 and branch == 1:
                    spoil(model)
        return state(model, optimizer)

    said, ends = together(lighthouse, dict.fromkeys("abc", training))
    assert said == [
        "branch 1 of 3 has weights that are infinite or NaN: it is left out of the average of round 0 and restarts from it"
    ]
    for end in ends.values():
        same(end["model"], ends["a"]["model"])
        assert all(bool(t.isfinite().all()) for t in (*end["model"].values(), *end["optimizer"].values()))
