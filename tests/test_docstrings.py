"""Public docstrings: every example runs with nothing but its own imports, and every public name of the exact rooms names its source."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import lookaround
import lookaround.landscape
import lookaround.theory

PACKAGES = [
    importlib.import_module(name)
    for name in ["lookaround", *(m.name for m in pkgutil.walk_packages(lookaround.__path__, "lookaround.") if m.ispkg)]
]
# What users import, by every name under which they can.
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in PACKAGES
    for name in getattr(package, "__all__", ())
}


def examples(name, thing):
    """The doctests of a public name and of its public methods, none of which sees the module it stands in."""
    finder = doctest.DocTestFinder(recurse=inspect.isclass(thing))
    return [test for test in finder.find(thing, name, globs={}) if test.examples]


EXAMPLES = {test.name: test for name, thing in PUBLIC.items() for test in examples(name, thing)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_with_nothing_but_its_own_imports(name):
    test = EXAMPLES[name]
    test.globs = {}
    failures = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_examples_are_found_in_every_room_that_has_public_names():
    rooms = {name.split(".")[1] for name in EXAMPLES}
    assert {"averaging", "theory", "landscape", "optim"} <= rooms
    assert len(EXAMPLES) > 50


@pytest.mark.parametrize("room", [lookaround.theory, lookaround.landscape], ids=lambda room: room.__name__)
def test_every_public_name_of_the_exact_rooms_names_its_source(room):
    documented = {name: getattr(room, name) for name in room.__all__ if callable(getattr(room, name))}  # but constants
    silent = [
        n for n, thing in documented.items() if not re.search(r"^\s*Source: \S", inspect.getdoc(thing) or "", re.M)
    ]
    assert silent == []
