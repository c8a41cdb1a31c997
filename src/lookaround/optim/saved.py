"""A wrapper with branches as a checkpoint sees it: each branch is saved and loaded as the whole inner optimizer that it is."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lookaround.holders import hold
from lookaround.optim.held import Held
from lookaround.optim.kept import SLOW, TRAINING
from lookaround.optim.own import check_buffers, inner_parts
from lookaround.optim.run import COUNTERS, IN_BLOCK, LEFT_OUT, UNDER_WAY
from lookaround.optim.schema import count, split
from lookaround.optim.wrapper import Group, chain
from lookaround.tensors import copy_


class Saved(Held):
    """State, state dict, copies and pickles of a wrapper with branches."""

    _unshown: ClassVar[tuple[str, ...]] = (
        *(
            f"{key}:"
            for key in (*COUNTERS, *IN_BLOCK, "has_slow", "has_training", "tensors", "entries", UNDER_WAY, LEFT_OUT)
        ),
        "inner.",
    )

    @property
    def state(self) -> Any:
        """The inner optimizer's state, of the branch in the model, with this wrapper's tensors in the parameters' entries."""
        self._run.wait()
        return self._run.own.state()

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def param_groups(self) -> list[Group]:
        """The inner optimizer's parameter groups, the same list, with this wrapper's counters as they are now."""
        if (run := getattr(self, "_run", None)) is not None:
            run.note()
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.inner.param_groups = groups

    def _saved(self) -> Group:
        self._run.wait()
        self._run.note()
        weights, outer = self._run.branches.weights, self._run.common.outer
        state_dict = self._run.own.save(super()._saved())
        state = state_dict["state"]
        now: Group = {"has_slow": SLOW in weights, "has_training": TRAINING in weights}
        now |= {"tensors": count(state), "entries": sum(map(bool, state.values()))}
        now |= self._run.said()
        now |= {f"outer.{key}": value for key, value in outer.settings().items()} if outer else {}
        saved = [*self._run.replay.saved(), *[{}] * len(state_dict["param_groups"])]
        named = {self._key(key): value for key, value in now.items()}
        groups = [
            {**group, **named, **replay} for group, replay in zip(state_dict["param_groups"], saved, strict=False)
        ]
        return {**state_dict, "param_groups": groups}

    def _load(self, state_dict: Group) -> None:
        theirs, own = split(state_dict["state"], f"{self.name}.")
        whole = self._has_begun(state_dict["param_groups"])
        if whole:
            self._check_complete(state_dict, own)
        self._run.note()
        before = self._snapshot()
        try:
            self._take_over(state_dict, theirs, own, whole)
        except BaseException:
            self._go_back(before)
            raise
        self._run.branches.bring_back()

    def _has_begun(self, groups: list[Group]) -> bool:
        """Whether a checkpoint is of this wrapper, in the middle of something."""
        first = groups[0] if groups else {}
        if (saved := first.get(self._key("branches"))) is None:
            return False
        here = self._get("branches")
        if saved != here:
            raise ValueError(
                f"the checkpoint has {saved} branches, this {type(self).__name__} has {here}: "
                f"build it with branches={saved}, or load the inner optimizer's part alone"
            )
        if first.get(self._key(UNDER_WAY)) and not self._run.overlap:
            raise ValueError(
                "the checkpoint was saved while an average was under way: build the optimizer with overlap=, as it was saved"
            )
        return any(first.get(self._key(counter)) for counter in COUNTERS) and not first.get(self._key("start"))

    def _check_complete(self, state_dict: Group, own: Mapping[Any, Group]) -> None:
        """Raise ValueError where something is missing that the middle of a round needs."""
        first = state_dict["param_groups"][0]
        waiting = [f"branch.{offset}" for offset in range(1, len(self._run.branches.local))]
        needed = [f"{each}.weights" for each in waiting]
        needed += [part for part in ("slow", "training") if first.get(self._key(f"has_{part}"))]
        labels = {label for entry in own.values() for label in entry}
        missing = [f"{self.name}.{label}" for label in needed if label not in labels]
        if not missing:
            check_buffers(own, waiting, self._run.branches)
            missing = self._miscounted(state_dict)
        if missing:
            raise ValueError(
                f"the checkpoint lacks {', '.join(missing)}: it was cut on the way (a flattened or filtered state dict drops what stands "
                "beside the inner optimizer's entries); save and load what state_dict() gives, whole"
            )

    def _miscounted(self, state_dict: Group) -> list[str]:
        """What is missing, in words, where there is less than was saved. Frameworks leave out entries of parameters not trained."""
        first, state = state_dict["param_groups"][0], state_dict["state"]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        frozen = [i for i, p in zip(ids, self.params(), strict=True) if not p.requires_grad and not state.get(i)]
        entries, tensors = first.get(self._key("entries"), 0), first.get(self._key("tensors"), 0)
        absent = entries - sum(map(bool, state.values()))
        if absent > len(frozen):
            return [f"the entries of {absent} of {entries} parameters"]
        fewer = tensors - count(state) if absent <= 0 else 0
        each = {str(label) for entry in state.values() if isinstance(entry, Mapping) for label in entry}
        labels = sorted((label for label in each if _is_of_each(label)), key=lambda label: ".inner." in label)
        gaps = [f"{label} of parameter {i}" for label in labels for i in ids if label not in state.get(i, {})]
        return [f"{fewer} of {tensors} tensors", *gaps[:3]] if fewer > 0 else []

    def _snapshot(self) -> list[tuple[Any, Group]]:
        run = self._run
        objects = [*chain(self), run, run.branches, run.common, run.replay]
        return [(each, dict(vars(each))) for each in objects] + [(run.common.own, dict(run.common.own))]

    def _go_back(self, before: list[tuple[Any, Group]]) -> None:
        for each, attributes in before:
            target = each if isinstance(each, dict) else vars(each)
            target.clear()
            target.update(attributes)

    def _take_over(self, state_dict: Group, theirs: Group, own: dict[Any, Group], whole: bool) -> None:
        run, fresh = self._run, self._fresh_settings()
        groups, local = state_dict["param_groups"], run.branches.local
        current = groups[0].get(self._key("branch"), local.start) if whole else local.start
        run.branches.clear(current)
        run.common.own = {}
        if whole:
            self._load_idle(state_dict, own)
        self._load_inner({**state_dict, "state": self._with_notes(theirs, own)})
        self._complete_groups(fresh, known=groups[0].get(self._key("branches")) is not None)
        run.branches.own_values.note(self.param_groups)
        params = dict(zip((i for group in groups for i in group["params"]), self.params(), strict=True))
        run.own.load({params[i]: entry for i, entry in own.items()})
        if run.common.outer is not None:
            head = self._key("outer.")
            saved = {k.removeprefix(head): v for k, v in self.param_groups[0].items() if k.startswith(head)}
            run.common.outer.load_settings(saved)
        run.resume()

    def _with_notes(self, theirs: Group, own: Mapping[Any, Group]) -> Group:
        """The entries of the inner optimizer in the model, with the notes of dtypes that are for it."""
        notes = {i: {f"{self.name}.dtype": entry["dtype"]} for i, entry in own.items() if "dtype" in entry}
        return theirs | {i: {**theirs[i], **note} for i, note in notes.items() if i in theirs}

    def _load_idle(self, state_dict: Group, own: Mapping[Any, Group]) -> None:
        """Each waiting branch is put in place, and loads its own state dict there."""
        branches, inside = self._run.branches, chain(self.inner)
        emptied = {id(o): vars(o).get("state") for o in inside}
        for o in inside:
            if "state" in vars(o):
                vars(o)["state"] = defaultdict(dict)
        for offset in range(1, len(branches.local)):
            head = f"{self.name}.branch.{offset}."
            beside = {key.removeprefix(head): v for key, v in state_dict.items() if key.startswith(head)}
            groups = [branches.own_values.of_waiting(group, offset) for group in state_dict["param_groups"]]
            branch = branches.at_offset(offset)
            branches.restart(branch)
            with branches.in_place(branch):
                self._load_inner({**beside, "state": inner_parts(own, offset), "param_groups": groups})
        for o in inside:
            if "state" in vars(o):
                vars(o)["state"] = emptied[id(o)]

    def _fresh_settings(self) -> Group:
        """The settings that a checkpoint of a plain inner optimizer leaves as they are, at the start of a first round."""
        raise NotImplementedError

    def _complete_groups(self, fresh: Group, known: bool) -> None:
        """Add the settings a checkpoint does not have."""
        for group in self.param_groups:
            for key, value in fresh.items():
                group.setdefault(key, value)

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)
        hold(self)
        run = self._run
        run.walk, run.shown, run.left, run.at, run.stale = None, 0, run.left, None, None
        run.barred, run.showing = [], None
        self._restore_training()

    def _restore_training(self) -> None:
        """A copy made while an average is shown has the training weights, and no average to take out of them."""
        for kept in self._run.branches.kept:
            pairs = kept.pairs(TRAINING)
            copy_([live for live, _ in pairs], [value for _, value in pairs])
            kept.drop(TRAINING)
        self._run.evaluating = False

    def __copy__(self) -> "Saved":
        twin = super().__copy__()
        assert isinstance(twin, Saved)
        hold(twin)
        return twin

    def __getstate__(self) -> Group:
        self._run.wait()
        return {**super().__getstate__(), "_run": replace(self._run, walk=None, stale=None, showing=None)}


def _is_of_each(label: str) -> bool:
    """Whether a wrapper's label is one that all parameters have; buffers stand in one entry alone."""
    return "." in label and ".buffers." not in label and ".other." not in label
