"""A lone device: as many steps as fit into the mixture's time, and the mixture against the better LoRA."""

from dataclasses import replace

import pytest

from benchmarks.evidence.play import Ground, equal_terms, open_fleet, play
from benchmarks.evidence.runs import Run
from benchmarks.figures import one_device
from comigs_edge.simulate import recipe as recipes

TIMES = {"step": 2.0, "validation": 3.0}


@pytest.fixture
def ground(recipe_file, folder, tiny_path, monkeypatch):
    path = recipe_file()
    monkeypatch.setattr(recipes, "find", lambda name: path)
    return Ground(text=folder, base=tiny_path, size="quick", test_tokens=1000)


def test_router_steps_and_validations_are_paid_for(tiny_base):
    found = recipes.read(recipes.find("multilingual"))
    run = Run("", "multilingual", "comigs-edge", 4e-3, devices=1, steps=60)
    product = equal_terms(run, found, found.size("quick"), tiny_base.hparams).schedule(tiny_base.hparams, 1)
    assert product.steps == 60
    assert one_device.seconds(product, 60, TIMES) == (60 + 20) * 2 + 2 * 3  # the router's ten after 30 and after 60
    alone = equal_terms(replace(run, method="local"), found, found.size("quick"), tiny_base.hparams)
    plain = alone.schedule(tiny_base.hparams, 1)
    plain = replace(plain, router_steps=0, router_period=30)
    assert one_device.steps_within(plain, 166, TIMES) == 78  # 156 seconds, and 9 for three validations
    assert one_device.steps_within(plain, 1, TIMES) == 1


@pytest.mark.parametrize("steps", [1, 29, 60, 73])
def test_a_run_that_names_its_steps_has_them_or_at_most_a_few_more(tiny_base, steps):
    found = recipes.read(recipes.find("multilingual"))
    plan = equal_terms(Run("", "", "local", 4e-3, steps=steps), found, found.size("quick"), tiny_base.hparams)
    assert steps <= plan.schedule(tiny_base.hparams, 1).steps <= steps + 2


def test_a_lone_mixture_is_compared_with_the_better_rate_of_each_lora(ground):
    records = {}
    for run in one_device.variants("three"):
        if run.rate != one_device.RATES[-1]:
            records[replace(run, steps=3)] = play(replace(run, steps=3), ground)
    rows = one_device.table(records, ["three"])
    assert [row["method"] for row in rows] == ["comigs-edge-parallel", "comigs-edge", "local", "local-train-valid"]
    alone = min(record["bits_per_byte"] for run, record in records.items() if run.label == "local")
    assert rows[2]["bits_per_byte"] == alone
    assert rows[0]["above_percent"]["local"][0] == pytest.approx(100 * (rows[0]["bits_per_byte"] / alone - 1), rel=1e-2, abs=1e-3)
    assert {len(record["devices"]) for record in records.values()} == {1}
    assert all(record["bytes_moved"] == 0 for record in records.values())
    assert "equal tokens" not in str([record["terms"] for record in records.values()])
    text = one_device.markdown(rows)
    assert text.count("| three | ") == 4


def test_steps_of_all_variants_are_timed_in_turn(ground):
    found = one_device.measure_steps(one_device.variants("three"), 9, ground)
    assert found.keys() == {"comigs-edge-parallel", "comigs-edge", "local", "local-train-valid"}
    assert found["comigs-edge-parallel"]["steps"] == 9
    assert all(each["step"] > 0 for each in found.values())


def test_one_expert_alone_pays_for_no_router(ground):
    alone, mixture = (open_fleet(Run("", "three", name, 4e-3, devices=1), ground) for name in ("local", "comigs-edge"))
    assert one_device.seconds(one_device.turns_of(alone.devices[0].trainer), 3, TIMES) == 3 * 2 + 3
    assert one_device.seconds(one_device.turns_of(mixture.devices[0].trainer), 9, TIMES) == (9 + 10) * 2 + 3
