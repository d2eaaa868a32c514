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
MAX_LINES = 300

# Package -> the packages that it imports, in the order in which they stand on each other. `comigs_edge` alone stands for the
# modules that lie beside the packages; `comigs_edge.commands` has the command line's modules with it.
ARROWS = {
    "quantize": "",
    "profiles": "",
    "coordinator.protocol": "",
    "coordinator.ledger": "coordinator.protocol",
    "coordinator.web": "coordinator.protocol coordinator.ledger",
    "coordinator.flare": "coordinator.protocol coordinator.ledger coordinator.web",
    "coordinator": "coordinator.flare coordinator.protocol coordinator.ledger coordinator.web",
    "comigs_edge": "coordinator.protocol profiles quantize",
    "comigs_edge.base": "comigs_edge quantize",
    "comigs_edge.data": "comigs_edge coordinator.protocol",
    "comigs_edge.nn": "comigs_edge comigs_edge.base coordinator.protocol profiles quantize",
    "comigs_edge.home": ("comigs_edge comigs_edge.base comigs_edge.data comigs_edge.nn coordinator.protocol profiles"),
    "comigs_edge.export": "comigs_edge comigs_edge.base comigs_edge.data comigs_edge.home comigs_edge.nn quantize",
    "comigs_edge.planning": (
        "comigs_edge comigs_edge.base comigs_edge.home comigs_edge.nn coordinator.protocol profiles quantize"
    ),
    "comigs_edge.inference": ("comigs_edge comigs_edge.base comigs_edge.data comigs_edge.export comigs_edge.nn quantize"),
    "comigs_edge.training": (
        "comigs_edge comigs_edge.base comigs_edge.data comigs_edge.home comigs_edge.nn comigs_edge.planning "
        "coordinator.protocol profiles quantize"
    ),
    "comigs_edge.fleet": (
        "comigs_edge comigs_edge.base comigs_edge.home comigs_edge.nn comigs_edge.planning "
        "comigs_edge.training coordinator.protocol quantize"
    ),
    "comigs_edge.simulate": (
        "comigs_edge comigs_edge.base comigs_edge.data comigs_edge.home comigs_edge.inference comigs_edge.nn "
        "comigs_edge.planning comigs_edge.training coordinator.protocol"
    ),
}


@cache
def modules():
    """Every module of the four rooms: name -> (path, tree)."""
    every = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            every[name] = path, ast.parse(path.read_text())
    return every


def runs(tree):
    """The nodes of a tree that a program can come to: imports for annotations are left out."""
    is_annotations = isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING"
    for child in tree.orelse if is_annotations else ast.iter_child_nodes(tree):
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


def package(module):
    """The row of the table in which a module stands."""
    if module.startswith(COMMANDS):
        return "comigs_edge.commands"
    head = ".".join(module.split(".")[:2])
    return head if head in ARROWS else module.split(".")[0]


@cache
def graph():
    known = modules().keys()
    return {name: imports(tree, known) - {name} for name, (_, tree) in modules().items()}


def arrows():
    """The table as the source has it."""
    real = {}
    for name, targets in graph().items():
        row = real.setdefault(package(name), set())
        row |= {package(target) for target in targets} - {package(name)}
    return real


def test_packages_import_what_the_table_says():
    real = arrows()
    real.pop("comigs_edge.commands")  # it may import everything
    assert real == {name: set(targets.split()) for name, targets in ARROWS.items()}


def test_packages_stand_on_each_other_without_a_circle():
    TopologicalSorter(arrows()).prepare()


def test_every_import_is_written_out():
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, name
            if isinstance(node, ast.Name | ast.Attribute):
                is_hidden = ast.unparse(node).split(".")[-1] in ("import_module", "__import__")
                assert not is_hidden or name == "comigs_edge.commands.table", name  # one command is imported, of its own package


def test_the_rooms_import_neither_tests_nor_benchmarks():
    for name, (_, tree) in modules().items():
        for node in ast.walk(tree):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {each.split(".")[0] for each in named} & {"tests", "benchmarks"}, name


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
