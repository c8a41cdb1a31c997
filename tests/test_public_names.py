"""What the package exports, what importing it loads, and that its rooms import downwards only."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lookaround
import lookaround.optim

ROOT = Path(lookaround.__file__).parent
# From the bottom to the top; a room may import from its own level's left and from below, as `design.md` draws it.
ORDER = [
    {"tensors", "packed", "buffers", "files", "errors", "holders", "showing"},
    {"distributed"},
    {"optim", "averaging", "theory", "landscape"},
    {"tasks"},
    {"methods"},
    {"experiment"},
    {"recipes"},
    {"commands"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
FILES = sorted(ROOT.rglob("*.py"))


def test_exported_names():
    assert lookaround.__all__ == ["SAM", "Lookahead", "Lookaround"]
    assert lookaround.optim.__all__ == ["SAM", "Lookahead", "Lookaround", "optimal_alpha"]


@pytest.mark.parametrize("module", [lookaround, lookaround.optim], ids=lambda m: m.__name__)
def test_every_exported_name_is_there_and_documented(module):
    for name in module.__all__:
        assert getattr(module, name).__doc__


def test_importing_it_loads_nothing_that_torch_has_not_loaded():
    script = (
        "import sys, torch, json; before = set(sys.modules); import lookaround; "
        "print(json.dumps([name.partition('.')[0] for name in set(sys.modules) - before]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert set(json.loads(answer.stdout)) - set(sys.stdlib_module_names) <= {"lookaround", "torch"}


def imports(path):
    """(module, at top level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    typing = {
        n
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            yield name, node not in inside and node not in typing


def room_of(path):
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downwards(path):
    room = room_of(path)
    if room == "__init__":
        return
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "lookaround" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room] or sideways(room, parts[1]), f"{path.name} imports {name}"


def sideways(room, other):
    """Rooms of one level: all may, but `optim` and `averaging` do not know each other."""
    return LEVEL[room] == LEVEL[other] and {room, other} != {"optim", "averaging"}


def graph():
    """The files that each file imports, whatever for: where a name is a module of its own, that; otherwise the one it comes from."""
    modules = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    return {
        name: {other for other, _ in imports(path) if other in modules and other not in (name, "lookaround")}
        for name, path in modules.items()
    }


def circle(edges):
    """A circle of names in a graph, None where there is none."""
    done = set()

    def visit(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(edges[name]):
                if found := visit(other, [*way, name]):
                    return found
            done.add(name)
        return None

    return next((found for name in sorted(edges) if (found := visit(name, []))), None)


def packages_within(edges):
    """The graph without what a file's own packages import: to import a file runs their ``__init__``, which only exports."""
    return {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in edges.items()}


def test_no_files_import_each_other_in_a_circle():
    """Imports for types and those inside functions count too."""
    assert circle(packages_within(graph())) is None


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


LIGHT = [
    p
    for p in FILES
    if room_of(p)
    in {"__init__", "tensors", "packed", "buffers", "files", "distributed", "optim", "averaging", "theory"}
]


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_light_rooms_need_torch_alone(path):
    allowed = {"torch", "lookaround"} | set(sys.stdlib_module_names)
    assert {name.partition(".")[0] for name, top in imports(path) if top} <= allowed


def test_every_room_has_its_place():
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_init_files_only_export(path):
    allowed = (ast.ImportFrom, ast.Import, ast.Assign, ast.Expr)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, allowed) for node in body)
    assert all(ast.unparse(node).startswith("__all__") for node in body if isinstance(node, ast.Assign))


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_writes_behind_autograds_back(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "data"]
