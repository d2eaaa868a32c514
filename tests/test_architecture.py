"""The arrow table: which package imports which, lazy imports included, against the real source."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("comigs_edge", "quantize", "profiles", "coordinator")
COMMANDS = ("comigs_edge.commands", "comigs_edge.cli", "comigs_edge.__main__")
MAX_LINES = 310


@cache
def modules():
    """Every module of the four rooms: name -> (path, tree)."""
    every = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            every[name] = path, ast.parse(path.read_text())
    return every


def is_annotation_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def runs(tree):
    """The nodes of a tree that a program can come to: imports for annotations are left out."""
    for child in ast.iter_child_nodes(tree):
        if not is_annotation_only(child):
            yield child
            yield from runs(child)


def imports(tree, known):
    """The modules of the four rooms that a tree imports anywhere."""
    names = set()
    for node in runs(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in members}
    return names & known


@cache
def graph():
    known = modules().keys()
    return {name: imports(tree, known) - {name} for name, (_, tree) in modules().items()}


def test_no_room_imports_another_but_the_application():
    for name, targets in graph().items():
        if not name.startswith("comigs_edge"):
            assert {target.split(".")[0] for target in targets} <= {name.split(".")[0]}, name


def test_nothing_below_the_commands_imports_them():
    for name, targets in graph().items():
        if not name.startswith(COMMANDS):
            assert not {target for target in targets if target.startswith(COMMANDS)}, name


def test_no_file_imports_itself_through_others():
    TopologicalSorter(graph()).prepare()


def test_coordinator_and_profiles_never_load_torch():
    rooms = "coordinator.serve, coordinator.__main__, profiles, comigs_edge.home.versions"
    code = f"import sys, {rooms}; print({{'torch', 'gguf', 'typer', 'rich'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"


def test_files_are_short_and_open_with_a_docstring():
    for name, (path, tree) in modules().items():
        assert ast.get_docstring(tree), name
        assert path.read_text().count("\n") <= MAX_LINES, name
