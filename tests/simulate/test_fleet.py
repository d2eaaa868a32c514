"""Virtual devices train by the real trainer, exchange over the real wire format, and go on bit for bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import Home
from comigs_edge.planning.plan import resolve
from comigs_edge.simulate.fleet import Fleet, halves
from comigs_edge.simulate.methods.catalogue import METHODS, find_method
from comigs_edge.simulate.plan import Plan
from comigs_edge.simulate.recipe import ExchangeRecipe, ExpertRecipe, TrainingRecipe
from comigs_edge.training.opening import open_training
from comigs_edge.training.trainer import Trainer
from coordinator.protocol import compress, wire
from tests.tiny import some_text

EXCHANGES_FIRST = replace(find_method("comigs-1g1s"), name="exchanges-first", exchanges_first=True)
ALIKE = [f"comigs-1g{count}s" for count in range(3, 8)]  # differ from comigs-1g2s in a number


def nothing(steps):
    """Progress that nobody looks at."""


def arrays(fleet):
    return [device.adapters.arrays() for device in fleet.devices]


def play(fleet):
    return [record for _ in range(fleet.number, fleet.plan.size.rounds) for record in fleet.round(nothing)]


def test_devices_share_one_base(fleet):
    one = fleet("comigs-1g1s")
    assert len({id(device.trainer.model.base) for device in one.devices}) == 1
    assert len({id(tensor) for device in one.devices for tensor in device.adapters.named.values()}) == sum(
        len(device.adapters.named) for device in one.devices
    )


def test_devices_start_from_one_generalist_and_their_own_specialists_and_routers(fleet):
    first, second, third = arrays(fleet("comigs-1g1s"))
    for name, array in first.items():
        if name.startswith("generalist."):
            assert (array == second[name]).all()
            assert (array == third[name]).all()
        elif name.endswith("lora_a") or name.startswith("router."):
            assert (array != second[name]).any()


def test_after_a_round_shared_tensors_are_equal_and_the_rest_is_each_devices_own(fleet):
    one = fleet("comigs-1g1s")
    before = arrays(one)
    one.round(nothing)
    after = arrays(one)
    for name in after[0]:
        if name.startswith("generalist."):
            assert all((each[name] == after[0][name]).all() for each in after)
            assert (after[0][name] != before[0][name]).any()
        else:
            assert (after[0][name] != after[1][name]).any()
            assert (after[1][name] != after[2][name]).any()


def test_two_generalists_are_both_equal_after_a_round_and_the_routers_are_not(fleet):
    one = fleet("comigs-2g")
    one.round(nothing)
    after = arrays(one)
    for name in after[0]:
        assert all((each[name] == after[0][name]).all() for each in after) != name.startswith("router.")


def test_devices_have_as_many_specialists_as_the_recipe_gives_them(fleet):
    one = fleet("comigs-1gxs")
    assert [device.adapters.layout.num_specialists for device in one.devices] == [1, 2, 0]
    one.round(nothing)
    after = arrays(one)
    generalist = [name for name in after[2] if name.startswith("generalist.")]
    assert len(generalist) == len(after[2])  # the third device has nothing else, not even a router
    assert all((after[0][name] == after[2][name]).all() for name in generalist)


def test_the_generalist_after_a_round_is_the_mean_of_what_the_devices_had_trained(fleet, recipe):
    found = replace(recipe, exchange=ExchangeRecipe(update_format="float32"))
    together, alone = fleet("comigs-1g1s", found=found), fleet("comigs-1g1s", found=found)
    together.round(nothing)
    for device in alone.devices:
        device.train(3, nothing)
    trained = arrays(alone)
    for name, array in arrays(together)[0].items():
        if name.startswith("generalist."):
            np.testing.assert_allclose(array, np.mean([each[name] for each in trained], axis=0), atol=4e-6)


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_averaging_in_turn_loses_no_round_to_an_expert_whose_out_side_is_zero(fleet, recipe, form):
    found = replace(recipe, exchange=ExchangeRecipe(averaging="alternate"), experts=ExpertRecipe(form=form))
    one = fleet("comigs-1g1s", found=found)
    changed = []
    for _ in range(2):
        before = arrays(one)[0]
        one.round(nothing)
        after = arrays(one)[0]
        changed.append({name for name in after if name.startswith("generalist.") and (after[name] != before[name]).any()})
    outer = {name for name in after if name.startswith("generalist.") and name.endswith(("lora_b", "ffn_down.weight"))}
    assert changed == [outer, {name for name in after if name.startswith("generalist.")} - outer]


@pytest.mark.parametrize("method", ["local", "fedavg", "comigs-1g1s", EXCHANGES_FIRST])
def test_the_validation_loss_of_a_round_is_that_of_the_model_that_it_leaves(fleet, method):
    one = fleet(method)
    for record, device in zip(one.round(nothing), one.devices, strict=True):
        assert record["validation_loss"] == device.trainer.validate()


@pytest.mark.parametrize("method", ["local", "comigs-2s", "fedavg"])
def test_a_period_that_ends_within_a_round_lends_its_loss_to_no_later_state(fleet, recipe, method):
    found = replace(recipe, sizes={"quick": replace(recipe.size("quick"), router_period=2)})
    one = fleet(method, found=found)
    while not one.is_done:
        for record, device in zip(one.round(nothing), one.devices, strict=True):
            assert record["validation_loss"] == device.trainer.validate()


@pytest.mark.parametrize("method", ["comigs-edge", EXCHANGES_FIRST])
def test_where_the_exchange_comes_first_the_router_learns_from_the_mean_generalist(fleet, recipe, method):
    size = replace(recipe.size("quick"), rounds=1)  # so that even a long period of the router ends with it
    found = replace(recipe, exchange=ExchangeRecipe(update_format="float32"), sizes={"quick": size})
    together, alone = fleet(method, found=found), fleet(method, found=found)
    records = together.round(nothing)
    for device in alone.devices:
        device.train(3, nothing, ends_before_router=True)
        assert device.trainer.router_steps == 0
    trained = arrays(alone)
    mean = {name: array for name, array in arrays(together)[0].items() if name.startswith("generalist.")}
    for name, array in mean.items():
        np.testing.assert_allclose(array, np.mean([each[name] for each in trained], axis=0), atol=4e-6)
    for index, (device, own) in enumerate(zip(alone.devices, trained, strict=True)):
        device.load(mean)
        device.train(3, nothing)
        assert (device.trainer.router_steps > 0) == (device.trainer.router is not None)
        after = arrays(together)[index]
        for name, array in device.adapters.arrays().items():
            np.testing.assert_array_equal(after[name], array)
            assert not name.startswith("router.") or (array != own[name]).any()
        assert records[index]["validation_loss"] == device.trainer.validate()
        steps = device.trainer.expert_steps + device.trainer.router_steps
        assert records[index]["tokens"] == steps * together.plan.size.batch * together.plan.size.context


@pytest.mark.parametrize("format_name", ["float32", "float16"])
@pytest.mark.parametrize("attention", [False, True])
def test_bytes_are_those_of_the_wire_format(fleet, recipe, format_name, attention):
    found = replace(recipe, exchange=ExchangeRecipe(update_format=format_name), experts=ExpertRecipe(attention=attention))
    one = fleet("comigs-1g1s", found=found)
    shapes = {name: array.shape for name, array in arrays(one)[0].items() if name.startswith("generalist.")}
    up, down = (wire.encoded_size(compress.table(shapes, name)) for name in (format_name, "float32"))
    for record in one.round(nothing):
        assert (record["bytes_sent"], record["bytes_received"]) == (up, down)
    assert up > sum(np.prod(shape) for shape in shapes.values()) * (4 if format_name == "float32" else 2)


def test_fedavg_of_equal_parameters_moves_twice_the_numbers_and_frozen_a_less(fleet):
    sent = {name: fleet(name).round(nothing)[0]["bytes_sent"] for name in ("comigs-1g1s", "fedavg", "ffa-lora")}
    assert sent["fedavg"] == pytest.approx(2 * sent["comigs-1g1s"], rel=0.05)
    assert sent["ffa-lora"] < 0.6 * sent["fedavg"]


@pytest.mark.parametrize("name", ["local", "local-train-valid", "comigs-2s", "centralized"])
def test_methods_without_an_exchange_move_nothing(fleet, name):
    records = play(fleet(name))
    assert {record["bytes_sent"] + record["bytes_received"] for record in records} == {0}


def test_frozen_a_stays_as_it_was_drawn(fleet):
    one = fleet("ffa-lora")
    before = arrays(one)
    one.round(nothing)
    for device in one.devices:
        device.train(6, nothing)  # not only because an exchange brings it back
    after = arrays(one)
    for name in after[0]:
        same = all((each[name] == before[0][name]).all() for each in after)
        assert same == name.endswith("lora_a")


def test_no_step_of_fedalt_changes_what_the_others_have_learned(fleet):
    one, plain = fleet("fedalt"), fleet("comigs-1g1s")
    records = one.round(nothing)
    own = [{name: array for name, array in each.items() if name.startswith("specialist.")} for each in arrays(one)]
    for device, each in enumerate(arrays(one)):
        for name in filter(METHODS["comigs-1g1s"].shares, each):
            others = [other[name.replace("generalist", "specialist.1")] for index, other in enumerate(own) if index != device]
            np.testing.assert_allclose(each[name], sum(others) / 2, rtol=0, atol=2e-3)  # what is sent is float16
    found = arrays(one)
    one.devices[0].train(6, nothing)
    after = arrays(one)[0]
    assert all((after[name] == array).all() for name, array in found[0].items() if name.startswith("generalist."))
    assert any((after[name] != array).any() for name, array in found[0].items() if name.startswith("specialist."))
    expected = plain.round(nothing)[0]
    for name in ("bytes_sent", "bytes_received"):  # as much as a mixture's generalist: their names are a little longer
        assert records[0][name] == pytest.approx(expected[name], rel=0.02)


def test_the_residual_of_fedex_lora_is_changed_by_exchanges_alone(fleet):
    one = fleet("fedex-lora")
    before = arrays(one)[0]
    one.round(nothing)
    found = arrays(one)
    assert any((found[0][name] != array).any() for name, array in before.items() if name.startswith("specialist."))
    shared = [name for name in before if not name.startswith("router.")]
    assert all((each[name] == found[0][name]).all() for each in found for name in shared)
    one.devices[0].train(6, nothing)
    for name in shared:
        is_same = (arrays(one)[0][name] == found[0][name]).all()
        assert is_same == name.startswith("specialist.")


def test_what_an_exchange_has_turned_begins_with_new_moments(fleet):
    def steps(device):
        return {float(moments["step"]) for moments in device.trainer.experts.state.values()}

    for name, after in (("flexlora", [set(), set()]), ("fdlora", [set(), {3.0}]), ("fedavg", [{3.0}, {6.0}])):
        one = fleet(name)
        for expected in after:
            one.round(nothing)
            assert [steps(device) for device in one.devices] == [expected] * 3


def test_both_stages_of_fdlora_have_the_whole_course_of_the_rate(fleet):
    schedule = fleet("fdlora").devices[0].trainer.schedule
    rates = [schedule.learning_rate(step) for step in range(schedule.steps)]
    alone, plain = 3, fleet("fedavg").devices[0].trainer.schedule  # of three rounds one is alone
    assert rates[:alone] == [replace(plain, steps=3).learning_rate(step) for step in range(3)]
    assert rates[alone:] == [replace(plain, steps=6).learning_rate(step) for step in range(6)]
    assert rates[0] == rates[alone] == plain.learning_rate(0)


def test_in_the_first_stage_of_fdlora_nothing_moves_before_its_last_round(fleet, recipe):
    found = replace(recipe, sizes={"quick": replace(recipe.size("quick"), rounds=4, measured_rounds=())})
    one, alone = fleet("fdlora", found=found), fleet("fdlora", found=found)
    assert {record["bytes_sent"] + record["bytes_received"] for record in one.round(nothing)} == {0}
    for device, own, there in zip(alone.devices, arrays(one), arrays(alone), strict=True):
        device.train(3, nothing)
        for name, array in device.adapters.arrays().items():
            np.testing.assert_array_equal(own[name], array)
        assert any((own[name] != array).any() for name, array in there.items())
    assert all(record["bytes_sent"] > 0 for record in one.round(nothing))  # the second of four ends the stage


def test_unequal_ranks_train_and_exchange(fleet):
    for name in ("hetlora", "flexlora"):
        one = fleet(name)
        assert [device.adapters.layout.rank for device in one.devices] == [16, 24, 8]
        records = play(one)
        assert all(np.isfinite(record["training_loss"]) for record in records)


def test_the_loss_of_hetlora_has_half_a_percent_of_its_last_ranks_beside_the_text_s(fleet):
    trainer = fleet("hetlora").devices[0].trainer
    plain = Trainer(trainer.model, trainer.training, trainer.validation.rows, trainer.schedule)
    batch = trainer.training.batch(0, 2)
    with torch.no_grad():
        for name, tensor in trainer.adapters.named.items():
            tensor.add_(0.01)
            last = tensor[-1] if name.endswith("lora_a") else tensor[:, -1]
            last.zero_()[:2] = torch.tensor([3.0, 4.0] if name.endswith("lora_a") else [0.5, 1.2])  # of norm 5 and 1.3
        losses = [float(each._loss(batch)[0]) for each in (trainer, plain)]
    pairs = len(trainer.adapters.named) / 2
    assert pairs == 2 * 3  # blocks, and matrices of an MLP
    assert losses[0] - losses[1] == pytest.approx(0.005 * 5 * 1.3 * pairs, rel=1e-4)


def test_the_penalty_of_hetlora_is_on_the_last_rank_and_what_was_pruned_stays_so(fleet, monkeypatch):
    def last(penalty):
        monkeypatch.setattr("comigs_edge.simulate.pruning.PENALTY", penalty)
        trainer = fleet("hetlora").devices[0].trainer
        with torch.no_grad():
            for tensor in trainer.adapters.named.values():
                tensor.add_(0.01)
        for _ in range(3):
            trainer.step()
        sizes = [
            tensor.detach().square().sum(dim=1) for name, tensor in trainer.adapters.named.items() if name.endswith("lora_a")
        ]
        return sum(float(size[-1]) for size in sizes), sum(float(size[:-1].sum()) for size in sizes)

    (free, free_rest), (drawn, rest) = last(0.0), last(100.0)
    assert drawn < free
    assert rest == pytest.approx(free_rest, rel=0.02)

    trainer = fleet("hetlora").devices[0].trainer
    trainer.step()  # now there are moments
    with torch.no_grad():
        for name, tensor in trainer.adapters.named.items():
            (tensor[12:] if name.endswith("lora_a") else tensor[:, 12:]).zero_()
    for _ in range(2):
        trainer.step()
    for name, tensor in trainer.adapters.named.items():
        ranks = tensor if name.endswith("lora_a") else tensor.T
        assert not ranks[12:].any()
        assert ranks[:12].any(dim=1).all()


def test_pcl_leaves_every_device_with_a_model_of_its_own(fleet):
    one = fleet("pcl")
    loss = one._loss
    # The tiny base has 22 nats: at such perplexities trust is 0 or 1.
    one._loss = lambda index, arrays: loss(index, arrays) / 20
    records = one.round(nothing)
    first, second, _ = arrays(one)
    assert any((first[name] != second[name]).any() for name in first)
    assert records[0]["bytes_received"] > 3.5 * records[0]["bytes_sent"]  # two models at float32, one at float16


def test_what_a_method_chooses_by_is_a_loss_on_other_rows_than_the_measured_ones(fleet):
    one = fleet("fdlora")
    device = one.devices[0]
    trainer, seen = device.trainer, []
    measured = {place for batch in trainer.validation.rows.first(trainer.validation.measured_rows, 1) for place in batch.places}
    trainer.validation.mean_loss = lambda batches: seen.extend(batches) or 0.0
    one._loss(0, device.adapters.arrays())
    chosen_by = [place for batch in seen for place in batch.places]
    assert len(set(chosen_by)) == len(chosen_by) == len(measured) == 4
    assert not measured & set(chosen_by)
    before = device.adapters.arrays()
    one._loss(0, {name: 2 * array for name, array in before.items()})
    assert all((before[name] == array).all() for name, array in device.adapters.arrays().items())  # it was only asked


def test_a_centralized_model_is_one_and_learns_and_is_measured_on_every_devices_text(fleet, recipe, read_texts):
    one, texts = fleet("centralized"), read_texts(recipe).values()
    for rows, part in ((one.devices[0].trainer.training, "training"), (one.devices[0].trainer.validation.rows, "validation")):
        assert rows.num_documents == sum(len(getattr(text, part)) for text in texts)
    assert len(one.devices) == 1
    assert one.devices[0].trainer.schedule.batch == 3 * 2
    records = play(one)
    assert [record["device"] for record in records if "bits_per_byte" in record] == ["a", "b", "c"] * 2
    assert sum(record["tokens"] for record in records) == 3 * 9 * 2 * 32


def test_train_valid_learns_half_of_the_validation_text_and_chooses_by_the_other(fleet):
    plain, both = (fleet(name).devices[0].trainer for name in ("local", "local-train-valid"))
    extra = len(both.training) - len(plain.training)
    chosen_by = len(both.validation.rows)
    assert extra + chosen_by == pytest.approx(len(plain.validation.rows), abs=1)
    assert abs(extra - chosen_by) < len(plain.validation.rows) / 2
    learned, kept = (
        {tuple(row) for row in rows.batch(0, len(rows)).tokens.tolist()} for rows in (both.training, both.validation.rows)
    )
    assert not learned & kept


def test_halves_have_about_as_many_tokens_and_a_single_document_is_cut():
    documents = [Encoded([number] * length, [True] * length) for number, length in enumerate((10, 30, 20, 20))]
    learned, kept = halves(documents)
    assert (learned, kept) == ([documents[0], documents[2], documents[3]], [documents[1]])
    assert halves([Encoded([1, 2, 3], [True, True, False])]) == ([Encoded([1], [True])], [Encoded([2, 3], [True, False])])


def test_a_router_on_training_text_never_sees_a_validation_row(fleet):
    trainer = fleet("comigs-tr").devices[0].trainer
    seen, known = (set(map(tuple, rows.batch(0, len(rows)).tokens.tolist())) for rows in (trainer.router_rows, trainer.training))
    assert seen == known
    assert (trainer.router_rows.batch(0, 4).tokens != trainer.training.batch(0, 4).tokens).any()
    assert fleet("comigs-1g1s").devices[0].trainer.router_rows is not trainer.training


def test_joint_training_has_no_router_steps_and_the_router_learns_all_the_same(fleet):
    one = fleet("pfedmoe")
    before = arrays(one)
    play(one)
    assert one.devices[0].trainer.router_steps == 0
    assert (arrays(one)[0]["router.blk.0"] != before[0]["router.blk.0"]).any()


def test_the_paper_s_rates_hold_where_the_recipe_names_none(fleet):
    plan = fleet("comigs-1g1s").devices[0].trainer.schedule
    assert (plan.expert_learning_rate, plan.final_learning_rate) == (2e-3, 2e-4)
    assert (plan.router_learning_rate, plan.router_offset_rate, plan.rates_by_weight) == (2e-3, 0, False)


@pytest.mark.parametrize(("form", "zero"), [(None, None), ("lora", None), ("parallel", None), ("parallel", True)])
def test_comigs_edge_trains_as_an_installation_does(run, home, fleet, recipe, tiny_path, tiny_base, tmp_path, form, zero):
    """A real home is initialised with this form, and its training begun with as many steps of as many rows."""
    run("init", "--base", tiny_path, "--specialists", "1", *(["--expert-form", form] if form else []))
    (tmp_path / "text.txt").write_text(some_text(40, 7))
    run("data", "add", tmp_path / "text.txt")
    there = Home(home)
    there.state.mkdir(exist_ok=True)
    lines = ["batch=2", "threads=1", *(["zero_expert=true"] if zero else [])]
    resolved = resolve(there, there.settings(), lines=lines)
    installed = open_training(there, resolved).begin(9, False)
    found = replace(recipe, experts=ExpertRecipe(form=form))
    plan = fleet("comigs-edge", found=found).plan
    plan = plan if zero is None else replace(plan, zero_expert=zero)
    schedule = plan.schedule(tiny_base.hparams, 1)
    assert schedule == installed.schedule
    assert plan.layout(tiny_base.hparams, 1) == installed.adapters.layout
    assert plan.settings(tiny_base.hparams).has_zero_expert == resolved.settings.has_zero_expert
    assert (schedule.closing > 0) == bool(plan.record(tiny_base.hparams)["zero_expert"]) == resolved.settings.has_zero_expert
    assert schedule.router_offset_rate > 0
    assert schedule.rates_by_weight


EFFECTS = {
    "expert_learning_rate": 1e-4, "final_learning_rate": 1e-4, "router_learning_rate": 1e-4, "warmup_steps": 3,
    "router_period": 2, "router_steps": 1, "balance_weight": 9.0, "weight_decay": 0.5, "rates_by_weight": False,
    "router_offset_rate": 0.0, "block_format": "Q8_0", "jointly": True, "schedule": "wsd", "decay_from": 1, "rate_factor": 0.5,
    "rate_steps": 2, "patience": 1, "quantise_start": 0.5, "optimiser": "adamw",
}  # fmt: skip
SEEN_WITH = {  # where a setting has an effect
    "decay_from": {"schedule": "wsd"}, "quantise_start": {"block_format": "Q8_0"},
    "patience": {"expert_learning_rate": 30.0, "router_period": 1},  # some periods end worse than the one before
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_no_setting_of_the_schedule_is_dropped_in_training(fleet, tiny_base, recipe, read_texts, name):
    """Each other value makes other adapters, on the device with two specialists, whose router has something to balance.

    Those of a closing phase, which changes nothing of these, are in `test_scores.py`.
    """
    common = {"router_period": 4, "block_format": None} | SEEN_WITH.get(name, {})

    @dataclass(frozen=True)
    class Changed(Plan):
        change: tuple = ()

        def schedule(self, hparams, devices):
            return replace(super().schedule(hparams, devices), **common | dict(self.change))

    def trained(*change):
        found = replace(recipe, devices={"b": recipe.devices["b"]}, experts=ExpertRecipe(form="parallel"))
        plan = Changed(found, found.size("quick"), find_method("comigs-edge"), 0, change=change)
        one = Fleet(tiny_base, plan, {"b": read_texts(recipe)["b"]})
        play(one)
        return one.digest()

    assert trained((name, EFFECTS[name])) != trained()


def test_a_recipe_may_name_the_experts_rate_for_every_method(fleet, recipe):
    found = replace(recipe, training=TrainingRecipe(expert_learning_rate=0.5))
    for name in ("comigs-edge", "comigs-1g1s"):
        plan = fleet(name, found=found).devices[0].trainer.schedule
        assert (plan.expert_learning_rate, plan.final_learning_rate) == (0.5, pytest.approx(0.05))


def test_the_reported_state_is_that_with_the_lowest_validation_loss(fleet):
    one = fleet("fedavg")
    one.round(nothing)
    first = [device.measure()[device.name] for device in one.devices]
    for device in one.devices:
        device.trainer.best_loss = 0.0  # as if nothing that follows were better
    for device, record, score in zip(one.devices, play(one)[-3:], first, strict=True):
        assert (record["bits_per_byte"], record["windows"]) == (score.bits_per_byte, list(score.windows))
        assert record["last_bits_per_byte"] == device.measure()[device.name].bits_per_byte != record["bits_per_byte"]


def test_the_models_that_the_last_exchange_finds_are_scored_where_that_is_asked_for(fleet):
    one, other, alone = fleet("fedavg"), fleet("fedavg"), fleet("local")
    for each in (one, alone):
        each.plan = replace(each.plan, scores_before=True)
    first, records = one.round(nothing), play(one)[-3:]
    assert "bits_per_byte" in first[0]
    assert "bits_per_byte_before_exchange" not in first[0]
    for _ in range(2):
        other.round(nothing)
    for device, record in zip(other.devices, records, strict=True):
        device.train(9, nothing)
        assert record["bits_per_byte_before_exchange"] == device.measure()[device.name].bits_per_byte
        assert record["bits_per_byte_before_exchange"] != record["last_bits_per_byte"]
    assert "bits_per_byte_before_exchange" not in play(alone)[-1]


def test_the_last_state_is_not_scored_where_only_the_chosen_one_is_asked_for(fleet):
    one, other = fleet("fedavg"), fleet("fedavg")
    other.plan = replace(other.plan, scores_last=False)
    for each in (one, other):
        each.round(nothing)
        for device in each.devices[1:]:
            device.trainer.best_loss = 0.0  # as if nothing that follows were better
    first, *rest = zip(play(one)[-3:], play(other)[-3:], strict=True)
    assert first[0]["last_bits_per_byte"] == first[1]["last_bits_per_byte"] == first[1]["bits_per_byte"]
    for whole, chosen in rest:
        assert whole.pop("last_bits_per_byte") > 0
        for record in (whole, chosen):
            del record["seconds"]
        assert chosen == whole


def test_a_better_round_s_end_is_kept_and_a_state_before_the_exchange_never(fleet):
    one = fleet("fedavg")
    for _ in range(3):
        records = one.round(nothing)
        for device, record, now in zip(one.devices, records, arrays(one), strict=True):
            assert device.trainer.best_loss <= record["validation_loss"]
            if device.trainer.best_loss == record["validation_loss"]:
                assert all((device.trainer.best[name] == array).all() for name, array in now.items())


def test_experts_that_weigh_the_same_do_so_to_the_end_and_the_router_takes_no_step(fleet):
    one = fleet("fedavg-even")
    records = play(one)
    assert records[-1]["expert_scores"] == [[0.5, 0.5]] * 2
    assert [device.trainer.router_steps for device in one.devices] == [0, 0, 0]
    assert not arrays(one)[0]["router.blk.0"].any()


def test_records_have_losses_scores_and_figures(fleet):
    one = fleet("comigs-1gxs")
    assert one.total_steps == 3 * 9 + 2 * 3 * 2  # two devices have a router
    records = play(one)
    assert one.steps == one.total_steps
    assert [record["round"] for record in records] == [1] * 3 + [2] * 3 + [3] * 3
    assert ["bits_per_byte" in record for record in records] == [True] * 3 + [False] * 3 + [True] * 3
    for record in records:
        assert record["training_loss"] > 0
        assert record["validation_loss"] > 0  # a router's period ends in every round
        assert record["tokens"] == (3 if record["device"] == "c" else 5) * 2 * 32
        scores = record["expert_scores"]
        if record["device"] == "c":
            assert scores is None
        else:
            assert len(scores) == 2  # blocks
            assert [sum(block) for block in scores] == pytest.approx([1, 1])
            assert len(scores[0]) == {"a": 2, "b": 3}[record["device"]]


@pytest.mark.parametrize("method", ["comigs-1g1s", "comigs-edge"])
def test_the_training_loss_of_a_round_is_the_mean_of_its_expert_steps(fleet, method):
    one, losses = fleet(method), []
    trainer = one.devices[0].trainer

    def step():
        event = type(trainer).step(trainer)
        if event.phase == "expert":
            losses.append(event.loss)
        return event

    trainer.step = step
    found = [one.round(nothing)[0]["training_loss"] for _ in range(3)]
    assert found == pytest.approx([sum(losses[start : start + 3]) / 3 for start in (0, 3, 6)])


def test_scores_are_the_mean_weights_of_the_router(fleet):
    device = fleet("comigs-1g1s").devices[0]
    with torch.no_grad():
        for name, tensor in device.adapters.named.items():
            if name.startswith("router."):
                tensor.zero_()
    device.trainer.validate(record_scores=True)
    assert device.trainer.scores == [[0.5, 0.5]] * 2
    assert device.trainer.model.watch is None


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ALIKE])
def test_a_fleet_that_is_restored_between_rounds_ends_with_the_same_bits(fleet, name):
    straight = fleet(name)
    straight.round(nothing)
    state, progress = straight.state()
    state = {key: array.copy() for key, array in state.items()}
    while not straight.is_done:
        straight.round(nothing)
    resumed = fleet(name)
    resumed.restore(state, progress)
    while not resumed.is_done:
        resumed.round(nothing)
    assert resumed.digest() == straight.digest()


def test_the_load_balance_loss_changes_nothing_at_two_experts_and_something_at_three(fleet, recipe):
    """The gradient is zero by `nn/test_routing.py`; here by run: whatever its weight, the bits are the same."""
    ends = {}
    for name in ("comigs-1g1s", "comigs-1g2s"):
        for weight in (0.0, 100.0):
            one = fleet(name, found=replace(recipe, training=TrainingRecipe(balance_weight=weight)))
            one.round(nothing)
            ends[name, weight] = one.digest()
    assert ends["comigs-1g1s", 0.0] == ends["comigs-1g1s", 100.0]
    assert ends["comigs-1g2s", 0.0] != ends["comigs-1g2s", 100.0]


def test_no_two_devices_of_any_seeds_draw_the_same_numbers(fleet):
    drawn = [device["router.blk.0"].tobytes() for seed in range(4) for device in arrays(fleet("comigs-1g1s", seed=seed))]
    assert len(set(drawn)) == len(drawn) == 12


def test_another_seed_is_another_fleet(fleet):
    assert fleet("comigs-1g1s", seed=1).digest() != fleet("comigs-1g1s", seed=2).digest()
    assert fleet("comigs-1g1s", seed=1).digest() == fleet("comigs-1g1s", seed=1).digest()


def test_parallel_experts_train_too_and_methods_of_low_rank_refuse_them(fleet, recipe):
    found = replace(recipe, experts=ExpertRecipe(form="parallel"))
    records = play(fleet("comigs-1g1s", found=found))
    assert records[-1]["bits_per_byte"] > 0
    with pytest.raises(ComigsError, match=r'flexlora is about low-rank updates; use form = "lora" in \[experts\]'):
        fleet("flexlora", found=found)


def test_updates_by_tokens_weigh_as_the_coordinators_rules_say(fleet, recipe):
    found = replace(recipe, exchange=ExchangeRecipe(weights="tokens"))
    one, seen = fleet("comigs-1gxs", found=found), []
    method = one.plan.method
    one.plan = replace(one.plan, method=replace(method, exchange=lambda each: seen.append(each) or method.exchange(each)))
    one.round(nothing)
    # 5 and 3 steps of 64 tokens, as shares of 2^20 tokens times 2^16.
    assert seen[0].weights == [20, 20, 12]
