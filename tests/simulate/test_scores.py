"""What is scored at the end of a simulated training: the weights of the exported file, with its zero expert."""

from dataclasses import replace
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.export.merged import export
from comigs_edge.inference.evaluate import in_llama_cpp, in_torch
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.simulate import device as devices
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.methods.catalogue import find_method
from comigs_edge.simulate.plan import Plan
from quantize.gguf_file import GGUFFile
from tests.simulate.test_fleet import nothing

ORDINARY = [Encoded(list(range(3, 200)), [True] * 197)]
ROWS = 2 * 32  # tokens of a step


@pytest.fixture
def closing(tiny_base, recipe, read_texts):
    """The fleet of `comigs-edge` whose trainings end with a zero expert, two of three rounds done, on the devices named."""

    def make(names="abc"):
        found = replace(recipe, devices={name: recipe.devices[name] for name in names})
        plan = Plan(found, found.size("quick"), find_method("comigs-edge"), 0, zero_expert=True)
        texts = read_texts(recipe)
        one = Fleet(tiny_base, plan, {name: texts[name] for name in names}, ORDINARY)
        for _ in range(2):
            one.round(nothing)
        return one

    return make


@pytest.fixture
def scored(monkeypatch):
    """The adapters that were measured, in order, each with what the model was like."""
    seen = []

    def measure(model, text):
        arrays = {name: array.copy() for name, array in model.adapters.arrays().items()}
        seen.append((Adapters.from_arrays(model.adapters.layout, model.adapters.hparams, arrays), model.block_format, text))
        return in_torch(model, text)

    monkeypatch.setattr(devices, "in_torch", measure)
    return seen


def test_a_training_of_the_product_ends_with_a_zero_expert_as_llama_cpp_measures_it(closing, scored, tiny_path, tmp_path):
    one = closing()
    for device, record in zip(one.devices, one.round(nothing), strict=True):
        found = [each for each in scored if each[0].layout.zero_expert and each[2] is device.tests[device.name]]
        ((adapters, block_format, text),) = found
        best = device.trainer.best
        for name, array in adapters.arrays().items():
            if name.startswith("router."):
                assert name not in best or (array[:-1] != best[name]).any()  # the last row is the zero expert's
            else:
                np.testing.assert_array_equal(array, best[name])
        export(GGUFFile(tiny_path), adapters, block_format, tmp_path / "out.gguf")
        there = in_llama_cpp(tmp_path / "out.gguf", text, 1)
        assert record["bits_per_byte"] == pytest.approx(there.bits_per_byte, rel=1e-3)
        assert record["bits_per_byte"] != record["bits_per_byte_without_zero_expert"]
        assert record["bits_per_byte_without_zero_expert"] == device.measure_best()[device.name].bits_per_byte


@pytest.mark.parametrize(("most", "rows", "count"), [(60, 8, 9), (1, 8, 4), (1, 0, 1)])
def test_a_closing_phase_is_paid_for_in_steps_tokens_and_seconds(closing, monkeypatch, most, rows, count):
    """Steps of two rows: a tenth of nine, but ten at least, and no more than those before or `most` of so many rows."""
    clock, seen = [0.0], []
    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def step(steps):
        clock[0] += 1.0
        seen.append(steps)

    one = closing()
    for device in one.devices:
        device.trainer.schedule = replace(device.trainer.schedule, closing_steps=most, closing_rows=rows)
    records = one.round(step)
    # Three expert steps and, at the end, ten of the router, which the last device has not before its zero expert.
    steps = [3 + 10 + count, 3 + 10 + count, 3 + count]
    assert [record["tokens"] for record in records] == [each * ROWS for each in steps]
    assert [record["seconds"] for record in records] == steps
    assert one.steps == one.total_steps  # a person sees it end
    assert len(seen) == sum(steps) == one.total_steps - 3 * 6  # in the two rounds before


@pytest.mark.parametrize(("gain", "closes"), [(0.0, False), (1e-9, True)])
def test_what_closing_would_spoil_is_kept_without_a_zero_expert(closing, gain, closes):
    """A training that has hardly found anything better than its start, or nothing."""
    one = closing("a")
    (device,) = one.devices
    one.round(nothing)
    device.trainer.first_loss = device.trainer.best_loss + gain
    closed = device.close(one.ordinary, 0, nothing)
    assert closed.tokens == (9 * ROWS if closes else 0)
    assert closed.scores == device.measure_best()


@pytest.mark.parametrize("name", ["Q4_0", None])
def test_scores_are_of_the_weights_that_gguf_py_gives_back(closing, tiny_base, name):
    one = closing("a")
    (device,) = one.devices
    device.trainer.schedule = replace(device.trainer.schedule, block_format=name)
    kind = gguf.GGMLQuantizationType.F32 if name is None else gguf.GGMLQuantizationType[name]
    held = {}
    for key, array in device.adapters.arrays().items():
        # A file holds the last matrix of an expert with the factor on what it adds.
        factor = np.float32(device.adapters.layout.expert_scale if ".ffn_down" in key else 1.0)
        is_expert = not key.startswith("router.")
        held[key] = gguf.quants.dequantize(gguf.quants.quantize(array * factor, kind), kind) / factor if is_expert else array
    model = Model(tiny_base, Adapters.from_arrays(device.adapters.layout, tiny_base.hparams, held))
    expected = in_torch(model, device.tests["a"]).nats
    assert device.measure()["a"].nats == pytest.approx(expected, rel=1e-6)
    device.trainer.model.block_format = "Q4_1"  # as something before may have left it
    assert device.measure()["a"].nats == pytest.approx(expected, rel=1e-6)


def test_a_rival_ends_without_a_zero_expert_whatever_text_there_is(tiny_base, recipe, read_texts):
    one = Fleet(tiny_base, Plan(recipe, recipe.size("quick"), find_method("local"), 0), read_texts(recipe), ORDINARY)
    assert all("bits_per_byte_without_zero_expert" not in record for _ in range(3) for record in one.round(nothing))
