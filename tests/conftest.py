"""What the tests share: a home in a temporary folder, a tiny base, a way to run commands."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `cli.main` does, before torch is loaded
os.environ["COLUMNS"] = "200"  # consoles read it when they are made, which may be here

import llama_cpp
import pytest
import torch
from typer.testing import CliRunner

from comigs_edge import files, llamacpp
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.weights import open_base
from comigs_edge.planning import rates
from comigs_edge.training.ordinary import TEST_SHARE, OrdinaryText
from profiles import watch
from quantize.formats import FILE_TYPES
from tests.coordinator.rig import Coordinator
from tests.tiny import some_text, write_llama

torch.set_num_threads(1)
ORDINARY_TOKENS = 512
LONG = {"test_end_to_end", "test_full_disks", "test_resume", "test_background", "test_fleet", "test_trainer", "test_wheel"}
MEMORY, ROOM = Path("/dev/shm"), 2 << 30  # bytes


def pytest_configure():
    """The folders of tests are in memory where it has room: what fsync promises is for tests that have disks of their own."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items):
    """Files that take longest come first: none of them is left when the other processors have nothing to do."""
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish():
    """What was imported is not looked through again, however often a training collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test can touch the developer's own home."""
    folder = tmp_path / "home"
    monkeypatch.setenv("COMIGS_EDGE_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    """A busy or hot machine makes no test wait, nor does measuring it; those of pauses bring readings of their own."""
    monkeypatch.setattr(watch, "readings", lambda load: watch.Readings())
    monkeypatch.setattr(rates, "SECONDS", 0.01)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    return write_llama(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_base(tiny_path):
    return open_base(tiny_path)


@pytest.fixture
def make_adapters(tiny_base):
    """Adapters as after a training: every tensor is random, so that nothing is hidden by a zero."""

    def make(specialists=1, k=None, attention=False, base=None, form="lora", blocks=0, zero=False):
        k = min(2, 1 + specialists + zero) if k is None else k
        layout = ExpertsConfig(specialists, 4, 8.0, k, attention, form, 32 if form == "parallel" else 0, blocks, zero)
        adapters = Adapters.initial(layout, (base or tiny_base).hparams, 0)
        generator = torch.Generator().manual_seed(1)
        for tensor in adapters.named.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        return adapters

    return make


@pytest.fixture
def run():
    """Runs a command in this process and returns its result; a bug raises, an error message does not. `code` None: any."""
    from comigs_edge.cli import app

    def command(*arguments, code=0, **options):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert code is None or result.exit_code == code, result.output
        return result

    return command


@pytest.fixture(scope="session")
def ordinary_text(tmp_path_factory) -> Path:
    """A folder with the tiny base's ordinary text, as its first training makes it."""
    folder, path = tmp_path_factory.mktemp("ordinary"), write_llama(tmp_path_factory.mktemp("base") / "tiny.gguf")
    for part, tokens in (("learning", ORDINARY_TOKENS), ("test", ORDINARY_TOKENS // TEST_SHARE)):
        OrdinaryText(folder, files.sha256_file(path), part, tokens, Tokenizer(path)).make(open_base(path))
    return folder


@pytest.fixture
def ready(run, home, tiny_path, ordinary_text, tmp_path, request):
    """A home with the tiny base and its ordinary text, some text, and settings that train in a second; a parameter names the
    form of expert.
    """
    form = getattr(request, "param", None)
    run("init", "--base", tiny_path, *(["--expert-form", form] if form else []))
    settings = home / "config.toml"
    quick = "batch = 4\ncontext = 64\nrouter_period = 4\nrouter_steps = 2\nvalidation_rows = 4\n"
    quick += f"closing_steps = 3\nordinary_tokens = {ORDINARY_TOKENS}\n"
    text = settings.read_text().replace("[train]\n", f"[train]\n{quick}")
    settings.write_text(text.replace("# enabled = true", "enabled = false"))  # for tests that start processes, see `calm`
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text(some_text())
    run("data", "add", tmp_path / "text")
    shutil.copytree(ordinary_text, home / "state", dirs_exist_ok=True)
    return home


@pytest.fixture
def no_ordinary_text(ready):
    """The home's base has not written yet."""
    for path in (ready / "state").iterdir():
        path.unlink()


@pytest.fixture
def coordinator(tmp_path):
    """A coordinator in a process, whose updates are not rounded."""
    running = Coordinator(tmp_path / "data", update_format="float32")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def private(tmp_path):
    """A private coordinator in a process."""
    running = Coordinator(tmp_path / "coordinator", private=True)
    yield running
    if running.process.poll() is None:
        running.stop()


def llama_logits(path, ids, adapters=()):
    """llama.cpp's logits (T, V) for the token ids, with a float32 cache, and with these LoRA files."""
    llama = llamacpp.load(path, n_ctx=512, n_batch=512, logits_all=True, n_threads=1, type_k=0, type_v=0, flash_attn=False)
    if adapters:
        llamacpp.LoadedAdapters(llama).use(tuple(adapters))
    llama.eval(ids)
    logits = torch.from_numpy(llama.scores[: len(ids)].copy()).double()
    llama.close()
    return logits


def divergence(expected, found):
    """Mean KL divergence a token, in nats, of two (T, V) tensors of logits."""
    a, b = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


def converted(source, format_name, target):
    """Writes `source` with llama.cpp's own quantiser, every matrix in one format."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread, params.allow_requantize = FILE_TYPES[format_name], True, 1, True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
