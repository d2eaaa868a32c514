"""What is lost elsewhere, against llama.cpp's own logits."""

import math

import pytest
import torch

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.export.merged import export
from comigs_edge.inference.elsewhere import measure_elsewhere
from comigs_edge.nn.model import Model
from quantize.gguf_file import GGUFFile
from tests.conftest import llama_logits


def answers():
    ids = torch.randint(3, 260, (3, 20), generator=torch.Generator().manual_seed(2)).tolist()
    return [Encoded(row, [place >= 5 + number for place in range(20)]) for number, row in enumerate(ids)]


def test_bits_and_divergence_are_those_of_llama_cpps_logits(tmp_path, tiny_path, tiny_base, make_adapters):
    adapters = make_adapters(form="parallel", zero=True)
    export(GGUFFile(tiny_path), adapters, "F32", tmp_path / "out.gguf")
    nats, divergence, count = [0.0, 0.0], 0.0, 0
    for ids, scored, _ in answers():
        logs = [llama_logits(path, ids).log_softmax(-1)[:-1] for path in (tiny_path, tmp_path / "out.gguf")]
        for place in range(len(ids) - 1):
            if scored[place + 1]:
                for index, each in enumerate(logs):
                    nats[index] -= float(each[place, ids[place + 1]])
                divergence += float((logs[0][place].exp() * (logs[0][place] - logs[1][place])).sum())
                count += 1
    found = measure_elsewhere(Model(tiny_base, adapters), answers())
    assert found.change == pytest.approx(nats[1] / nats[0] - 1, rel=1e-4)
    assert found.divergence == pytest.approx(divergence / count, rel=1e-4)
    assert str(found).startswith(f"{nats[1] / nats[0] - 1:+.1%} (KL")


def test_the_base_itself_has_lost_nothing(tiny_base):
    found = measure_elsewhere(Model(tiny_base, None), answers())
    assert math.isclose(found.change, 0, abs_tol=1e-9)
    assert math.isclose(found.divergence, 0, abs_tol=1e-7)
