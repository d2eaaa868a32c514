"""The real SmolLM2: opened fast and right, trained, exported, run by llama.cpp, talked to."""

import json

import pytest
import torch

from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.document import Document
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.export import folder as models
from comigs_edge.home import folder as homes
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from comigs_edge.training import ordinary
from quantize.gguf_file import GGUFFile
from tests.conftest import divergence, llama_logits
from tests.quantize.test_gguf_file import same
from tests.tiny import some_text

TEXT = "Grüße aus Zürich! The kettle is on; 3 × 4 = 12. " * 4 + some_text(1)


@pytest.fixture(scope="module")
def smollm2():
    return find_base(DEFAULT_BASE)[1]


def test_the_reader_equals_gguf_py_on_smollm2(smollm2):
    same(GGUFFile(smollm2), smollm2)


def test_training_export_and_chat_on_smollm2(home, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ordinary, "LENGTH", 64)  # tokens of an answer, which takes most of this
    run("init", "--specialists", "1")
    settings = home / "config.toml"
    small = "batch = 2\ncontext = 32\nrouter_period = 2\nrouter_steps = 1\nvalidation_rows = 2\nexpert_learning_rate = 0.01\n"
    small += "closing_steps = 2\nordinary_tokens = 256\n"
    settings.write_text(settings.read_text().replace("[train]\n", f"[train]\n{small}"))
    (tmp_path / "diary.md").write_text(some_text(60))
    run("data", "add", tmp_path / "diary.md")
    trained = json.loads(run("train", "--steps", "4", "--json").stdout)
    assert trained["validation_loss"] < trained["validation_loss_before"]

    run("export", "--format", "F32", "--output", tmp_path / "mine.gguf")
    here = homes.locate()
    adapters, _ = models.newest_adapters(here, here.settings())
    ids = Tokenizer(here.base_file).encode(Document(text=TEXT)).ids[:200]
    model = Model(open_base(here.base_file), adapters)
    with torch.no_grad():
        found = model.logits(model(torch.tensor([ids])).hidden)
    expected = llama_logits(tmp_path / "mine.gguf", ids)
    assert divergence(expected, found) < 1e-8
    assert (expected.argmax(-1) == found.argmax(-1)).all()
    assert run("chat", "--prompt", "Say hello.", "--temperature", "0").stdout.strip()
