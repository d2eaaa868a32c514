"""The arrow table: which module imports which, lazy imports included, against the real source."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("comigs_edge", "quantize", "profiles", "coordinator")
MAX_LINES = 300

# Module -> what it may import of the four rooms. A command may import everything below it.
ARROWS = {
    "profiles": "",
    "profiles.chat": "profiles profiles.cost",
    "profiles.cost": "",
    "profiles.detect": "",
    "profiles.plan": "profiles profiles.cost",
    "profiles.watch": "profiles.detect",
    "coordinator": "",
    "coordinator.admin": "coordinator.errors coordinator.fleet coordinator.folder coordinator.overview",
    "coordinator.aggregate": "coordinator.wire",
    "coordinator.answers": "coordinator.errors coordinator.messages",
    "coordinator.chain": (
        "coordinator.aggregate coordinator.compress coordinator.database coordinator.errors coordinator.keys "
        "coordinator.members coordinator.messages coordinator.payloads coordinator.rounds coordinator.wire"
    ),
    "coordinator.charts": "",
    "coordinator.compress": "coordinator.wire",
    "coordinator.config": "coordinator.compress coordinator.errors coordinator.messages coordinator.rounds",
    "coordinator.database": "coordinator.errors",
    "coordinator.errors": "",
    "coordinator.fleet": (
        "coordinator.aggregate coordinator.chain coordinator.compress coordinator.config coordinator.database "
        "coordinator.errors coordinator.members coordinator.messages coordinator.payloads coordinator.rounds "
        "coordinator.wire"
    ),
    "coordinator.folder": (
        "coordinator.config coordinator.database coordinator.errors coordinator.fleet coordinator.keys "
        "coordinator.payloads"
    ),
    "coordinator.keys": "coordinator.errors coordinator.messages",
    "coordinator.looks": "",
    "coordinator.members": "coordinator.database coordinator.errors coordinator.keys coordinator.messages",
    "coordinator.messages": "",
    "coordinator.metrics": "coordinator.fleet coordinator.overview",
    "coordinator.openapi": "coordinator.messages coordinator.signatures",
    "coordinator.overview": "coordinator.fleet coordinator.rounds",
    "coordinator.page": "coordinator.charts coordinator.fleet coordinator.looks coordinator.overview",
    "coordinator.payloads": "coordinator.errors",
    "coordinator.rates": "coordinator.errors",
    "coordinator.rounds": "",
    "coordinator.serve": (
        "coordinator.admin coordinator.config coordinator.errors coordinator.folder coordinator.payloads "
        "coordinator.server"
    ),
    "coordinator.server": (
        "coordinator.answers coordinator.chain coordinator.errors coordinator.fleet coordinator.keys "
        "coordinator.members coordinator.messages coordinator.metrics coordinator.openapi coordinator.page "
        "coordinator.payloads coordinator.rates coordinator.signatures"
    ),
    "coordinator.service": "coordinator.errors coordinator.systemd",
    "coordinator.signatures": "coordinator.errors",
    "coordinator.systemd": "coordinator.errors",
    "coordinator.wire": "",
    "quantize": "",
    "quantize.fake": "quantize.formats",
    "quantize.formats": "",
    "quantize.ggml": "quantize.formats",
    "quantize.gguf_file": "quantize.formats quantize.ggml",
    "quantize.gguf_writer": "quantize.formats quantize.ggml quantize.gguf_file",
    "comigs_edge": "",
    "comigs_edge.adapters": (
        "comigs_edge.base comigs_edge.errors comigs_edge.files comigs_edge.layout comigs_edge.lora "
        "comigs_edge.parallel comigs_edge.shape comigs_edge.versions coordinator.wire"
    ),
    "comigs_edge.arithmetic": "coordinator.wire",
    "comigs_edge.attention": (
        "comigs_edge.base comigs_edge.buffers comigs_edge.lora comigs_edge.norm comigs_edge.parallel "
        "comigs_edge.shape comigs_edge.short_rows profiles.cost"
    ),
    "comigs_edge.base": "comigs_edge.buffers comigs_edge.shape quantize.gguf_file",
    "comigs_edge.batches": "comigs_edge.buffers comigs_edge.errors comigs_edge.tokens",
    "comigs_edge.below": "comigs_edge.batches comigs_edge.errors",
    "comigs_edge.buffers": "",
    "comigs_edge.catalogue": "",
    "comigs_edge.chat": "comigs_edge.documents comigs_edge.engine comigs_edge.errors comigs_edge.tokens",
    "comigs_edge.checkpoint": "comigs_edge.files coordinator.wire",
    "comigs_edge.config": "profiles",
    "comigs_edge.config_file": "comigs_edge.config comigs_edge.errors profiles",
    "comigs_edge.config_text": "comigs_edge.config",
    "comigs_edge.corpus": "comigs_edge.documents comigs_edge.errors comigs_edge.files",
    "comigs_edge.diagnosis": "profiles profiles.detect",
    "comigs_edge.documents": "comigs_edge.errors",
    "comigs_edge.downloads": "comigs_edge.errors comigs_edge.files",
    "comigs_edge.engine": "comigs_edge.errors",
    "comigs_edge.errors": "coordinator.errors coordinator.wire profiles quantize.formats",
    "comigs_edge.evaluate": (
        "comigs_edge.engine comigs_edge.errors comigs_edge.loss comigs_edge.model comigs_edge.tokens"
    ),
    "comigs_edge.exchange": "coordinator.messages coordinator.wire",
    "comigs_edge.export": (
        "comigs_edge.adapters comigs_edge.base comigs_edge.files comigs_edge.layout comigs_edge.lora "
        "comigs_edge.shape quantize.formats quantize.ggml quantize.gguf_file quantize.gguf_writer"
    ),
    "comigs_edge.federation": (
        "comigs_edge.arithmetic comigs_edge.errors comigs_edge.exchange comigs_edge.manifests "
        "comigs_edge.membership comigs_edge.remote coordinator.compress coordinator.messages "
        "coordinator.rounds coordinator.wire"
    ),
    "comigs_edge.files": "comigs_edge.errors",
    "comigs_edge.home": (
        "comigs_edge.config comigs_edge.config_file comigs_edge.config_text comigs_edge.errors comigs_edge.files"
    ),
    "comigs_edge.hot": (
        "comigs_edge.adapters comigs_edge.base comigs_edge.errors comigs_edge.export comigs_edge.files "
        "comigs_edge.layout comigs_edge.lora comigs_edge.shape quantize.formats quantize.ggml "
        "quantize.gguf_file quantize.gguf_writer"
    ),
    "comigs_edge.hugging_face": (
        "comigs_edge.errors comigs_edge.files comigs_edge.vocabulary quantize.formats quantize.ggml"
    ),
    "comigs_edge.layout": "comigs_edge.config comigs_edge.errors comigs_edge.shape profiles",
    "comigs_edge.lora": "",
    "comigs_edge.lora_mixture": "comigs_edge.buffers comigs_edge.lora comigs_edge.moe comigs_edge.swiglu",
    "comigs_edge.loss": "comigs_edge.base comigs_edge.buffers profiles.cost",
    "comigs_edge.manifests": "comigs_edge.errors coordinator.keys coordinator.messages",
    "comigs_edge.measure": "comigs_edge.errors profiles.cost",
    "comigs_edge.membership": (
        "comigs_edge.errors comigs_edge.files comigs_edge.home coordinator.keys coordinator.messages coordinator.wire"
    ),
    "comigs_edge.merged_mlp": "comigs_edge.buffers comigs_edge.lora comigs_edge.moe comigs_edge.swiglu quantize.fake",
    "comigs_edge.methods": "",
    "comigs_edge.methods.catalogue": (
        "comigs_edge.errors comigs_edge.methods.centralized comigs_edge.methods.comigs comigs_edge.methods.fdlora "
        "comigs_edge.methods.fedavg comigs_edge.methods.ffa_lora comigs_edge.methods.flexlora "
        "comigs_edge.methods.hetlora comigs_edge.methods.local comigs_edge.methods.method comigs_edge.methods.pcl "
        "comigs_edge.methods.pfedmoe"
    ),
    "comigs_edge.methods.centralized": "comigs_edge.methods.method",
    "comigs_edge.methods.comigs": "comigs_edge.layout comigs_edge.methods.method",
    "comigs_edge.methods.fedavg": "comigs_edge.methods.method",
    "comigs_edge.methods.fdlora": "comigs_edge.methods.method coordinator.aggregate coordinator.wire",
    "comigs_edge.methods.ffa_lora": "comigs_edge.methods.method",
    "comigs_edge.methods.flexlora": "comigs_edge.methods.method comigs_edge.methods.ranks coordinator.wire",
    "comigs_edge.methods.hetlora": (
        "comigs_edge.methods.method comigs_edge.methods.ranks coordinator.aggregate coordinator.rounds coordinator.wire"
    ),
    "comigs_edge.methods.local": "comigs_edge.methods.method",
    "comigs_edge.methods.method": "comigs_edge.arithmetic comigs_edge.layout coordinator.aggregate coordinator.wire",
    "comigs_edge.methods.pcl": "comigs_edge.methods.method coordinator.wire",
    "comigs_edge.methods.pfedmoe": "comigs_edge.methods.method",
    "comigs_edge.methods.ranks": "comigs_edge.layout coordinator.wire",
    "comigs_edge.model": (
        "comigs_edge.adapters comigs_edge.attention comigs_edge.base comigs_edge.lora_mixture "
        "comigs_edge.merged_mlp comigs_edge.moe comigs_edge.norm comigs_edge.parallel comigs_edge.recompute "
        "profiles.cost"
    ),
    "comigs_edge.models": (
        "comigs_edge.adapters comigs_edge.config comigs_edge.errors comigs_edge.export comigs_edge.files "
        "comigs_edge.home comigs_edge.hot comigs_edge.replace comigs_edge.shape comigs_edge.versions "
        "quantize.formats quantize.gguf_file"
    ),
    "comigs_edge.moe": "",
    "comigs_edge.norm": "",
    "comigs_edge.optimiser": "",
    "comigs_edge.parallel": "quantize.fake",
    "comigs_edge.pauses": "profiles.watch",
    "comigs_edge.planning": (
        "comigs_edge.config comigs_edge.corpus comigs_edge.errors comigs_edge.files comigs_edge.home "
        "comigs_edge.layout comigs_edge.shape comigs_edge.versions profiles profiles.chat profiles.cost "
        "profiles.detect profiles.plan quantize.gguf_file"
    ),
    "comigs_edge.recompute": "comigs_edge.buffers",
    "comigs_edge.remote": "comigs_edge.errors comigs_edge.files coordinator.messages coordinator.signatures",
    "comigs_edge.replace": (
        "comigs_edge.adapters comigs_edge.errors comigs_edge.export comigs_edge.files comigs_edge.shape "
        "quantize.gguf_file quantize.gguf_writer"
    ),
    "comigs_edge.router_optimiser": "comigs_edge.moe comigs_edge.optimiser",
    "comigs_edge.schedule": "",
    "comigs_edge.session": (
        "comigs_edge.adapters comigs_edge.base comigs_edge.batches comigs_edge.below comigs_edge.checkpoint "
        "comigs_edge.config comigs_edge.corpus comigs_edge.errors comigs_edge.home comigs_edge.layout "
        "comigs_edge.model comigs_edge.schedule comigs_edge.tokens comigs_edge.train comigs_edge.versions "
        "profiles"
    ),
    "comigs_edge.shape": "comigs_edge.errors quantize.gguf_file",
    "comigs_edge.short_rows": "comigs_edge.buffers",
    "comigs_edge.simulate": "",
    "comigs_edge.simulate.costs": "comigs_edge.simulate.report",
    "comigs_edge.simulate.device": (
        "comigs_edge.adapters comigs_edge.base comigs_edge.evaluate comigs_edge.model "
        "comigs_edge.optimiser comigs_edge.train coordinator.wire"
    ),
    "comigs_edge.simulate.fleet": (
        "comigs_edge.adapters comigs_edge.arithmetic comigs_edge.base comigs_edge.batches comigs_edge.errors "
        "comigs_edge.layout comigs_edge.methods.method comigs_edge.schedule comigs_edge.simulate.device "
        "comigs_edge.simulate.recipe comigs_edge.simulate.texts comigs_edge.train coordinator.compress "
        "coordinator.rounds coordinator.wire"
    ),
    "comigs_edge.simulate.plots": "comigs_edge.simulate.costs comigs_edge.simulate.report",
    "comigs_edge.simulate.recipe": "comigs_edge.config comigs_edge.errors coordinator.rounds",
    "comigs_edge.simulate.report": "",
    "comigs_edge.simulate.run": (
        "comigs_edge.base comigs_edge.checkpoint comigs_edge.errors comigs_edge.evaluate comigs_edge.files "
        "comigs_edge.methods.method comigs_edge.model comigs_edge.simulate.fleet comigs_edge.simulate.recipe "
        "comigs_edge.simulate.texts"
    ),
    "comigs_edge.simulate.texts": (
        "comigs_edge.corpus comigs_edge.documents comigs_edge.errors comigs_edge.evaluate "
        "comigs_edge.simulate.recipe comigs_edge.tokens"
    ),
    "comigs_edge.speed": (
        "comigs_edge.adapters comigs_edge.engine comigs_edge.errors comigs_edge.export comigs_edge.hot "
        "comigs_edge.layout comigs_edge.shape quantize.gguf_file"
    ),
    "comigs_edge.swiglu": "comigs_edge.buffers",
    "comigs_edge.together": (
        "comigs_edge.config comigs_edge.exchange comigs_edge.federation comigs_edge.home "
        "comigs_edge.membership comigs_edge.remote comigs_edge.train coordinator.wire"
    ),
    "comigs_edge.tokens": "comigs_edge.documents comigs_edge.engine comigs_edge.errors",
    "comigs_edge.train": (
        "comigs_edge.adapters comigs_edge.arithmetic comigs_edge.base comigs_edge.batches comigs_edge.below comigs_edge.buffers "
        "comigs_edge.errors comigs_edge.loss comigs_edge.model comigs_edge.moe comigs_edge.optimiser "
        "comigs_edge.router_optimiser comigs_edge.schedule coordinator.wire"
    ),
    "comigs_edge.versions": "comigs_edge.errors",
    "comigs_edge.vocabulary": "comigs_edge.errors",
}
TOP = ("comigs_edge.cli", "comigs_edge.__main__", "comigs_edge.commands", "coordinator.__main__")


def modules():
    found = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


def imports(path, known):
    """The modules of the four rooms that a file imports anywhere, but for annotations only."""
    tree = ast.parse(path.read_text())
    skipped = {
        child for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body for child in ast.walk(statement)
    }  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in names}
    return {name for name in found if name in known}


def graph():
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_every_import_is_in_the_arrow_table():
    real = {name: found for name, found in graph().items() if not name.startswith(TOP)}
    assert real == {name: set(targets.split()) for name, targets in ARROWS.items()}


def test_nothing_below_imports_a_command_and_rooms_keep_apart():
    for name, targets in graph().items():
        room = name.split(".")[0]
        for target in targets:
            if room != "comigs_edge":
                assert target.split(".")[0] == room
            if not name.startswith(TOP):
                assert not target.startswith(TOP)


def test_there_is_no_import_cycle():
    TopologicalSorter(graph()).prepare()


def test_coordinator_and_profiles_never_load_torch():
    rooms = "coordinator.serve, coordinator.__main__, profiles, comigs_edge.config"
    code = f"import sys, {rooms}; print({{'torch', 'gguf', 'typer', 'rich'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"


def test_files_are_short_and_open_with_a_docstring():
    for name, path in modules().items():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), name
        assert text.count("\n") <= MAX_LINES, name
