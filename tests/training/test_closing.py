"""The closing phase: the best state gets a zero expert, and the router alone learns."""

import json
from pathlib import Path

import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import load, read_manifest, versions
from comigs_edge.inference.elsewhere import measure_elsewhere
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig, is_router
from comigs_edge.nn.model import Model
from comigs_edge.planning.fixed import fixed_lines
from comigs_edge.planning.plan import resolve
from comigs_edge.training import checkpoint
from comigs_edge.training.batches import Rows
from comigs_edge.training.closing import MixedRows
from comigs_edge.training.opening import open_training
from tests.training.test_known import write_notes

STEPS = 30  # and three closing ones


@pytest.fixture
def opened(ready):
    home = Home(ready)
    home.state.mkdir(exist_ok=True)  # as the lock does that a command takes
    return lambda *lines: open_training(home, resolve(home, home.settings(), lines=["threads=1", "zero_expert=true", *lines]))


def train(run, resume=False, stop_after=None):
    run.begin(None if resume else STEPS, resume)
    for number, _ in enumerate(run.steps(), 1):
        if number == stop_after:
            break
    return run.end()


def newest(run):
    saved = load(run.home.adapters, run.base.hparams, run.settings.base.sha256)
    return Adapters.from_arrays(saved.layout, run.base.hparams, saved.arrays)


@pytest.mark.parametrize("specialists", [0, 1, 2])
def test_what_is_kept_is_the_best_state_with_a_zero_expert_and_another_router(opened, specialists):
    run = opened(f"specialists={specialists}")
    assert train(run) == 1
    kept, best = newest(run), run.trainer.best
    assert kept.layout == ExpertsConfig(specialists, 8, 16.0, 2, False, "parallel", 32, zero_expert=True)
    for name, tensor in kept.named.items():
        assert torch.equal(tensor, torch.from_numpy(best[name])) if not is_router(name) else len(tensor) == specialists + 2
    if specialists:
        assert not torch.equal(kept.named["router.blk.1"][:-1], torch.from_numpy(best["router.blk.1"]))
    manifest = read_manifest(run.home.adapters, 1)
    assert manifest["validation_loss"] == run.closing.loss < manifest["validation_loss_before"]
    assert run.make_trainer(kept).validate() == pytest.approx(run.closing.loss, abs=1e-6)


def test_the_router_learns_from_other_rows_than_are_measured_its_own_text_most(opened):
    run = opened()
    train(run)
    closing, main = run.closing._trainer, run.trainer
    measured = {place for batch in main.validation.rows.first(main.validation.measured_rows, 4) for place in batch.places}
    own = {place for number in range(8) for place in closing.router_rows.one.batch(number, 4).places}
    assert own
    assert measured.isdisjoint(own)
    *three, ordinary = closing.router_rows.batch(0, 4).weights.view(4, -1).sum(1).tolist()
    assert (sum(three), ordinary) == pytest.approx((0.8, 0.2))  # its own text counts four times as much
    assert closing.validation.measured_rows == main.validation.measured_rows


def test_the_closing_phase_brings_the_model_back_to_the_base_on_its_own_answers(opened, ready, monkeypatch):
    monkeypatch.setattr("comigs_edge.training.schedule.CLOSING_SHARE", 1)
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("closing_steps = 3\n", "closing_steps = 40\n"))
    run = opened()
    run.begin(40, False)
    for _ in run.steps():
        pass
    best = Adapters.from_arrays(run.trainer.adapters.layout, run.base.hparams, run.trainer.best)
    before, after = (
        measure_elsewhere(Model(run.base, adapters), run.ordinary[1].answers) for adapters in (best, run.closing.adapters)
    )
    assert after.divergence < 0.9 * before.divergence  # as far as a random base lets it
    gain = run.trainer.first_loss - run.trainer.best_loss
    assert run.trainer.first_loss - run.closing.loss > 0.8 * gain


def test_a_share_of_the_rows_is_of_the_other_text_however_few_a_step_has():
    own, ordinary = (Rows([Encoded([token] * 200, [True] * 200)], 8, 0) for token in (5, 7))
    mixed = MixedRows(own, ordinary, 0.5)
    for size, counts in ((8, [4, 4, 4, 4]), (3, [1, 2, 1, 2]), (1, [0, 1, 0, 1])):
        batches = [mixed.batch(number, size) for number in range(4)]
        assert [int((batch.tokens[:, 0] == 7).sum()) for batch in batches] == counts
        assert all(batch.tokens.shape == (size, 8) and len(batch.targets) == 8 * size for batch in batches)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8])
def test_each_row_of_both_texts_comes_once_before_one_comes_again(size):
    one, other = (Rows([Encoded(list(range(first, first + 241)), [True] * 241)], 8, 0) for first in (0, 500))
    mixed, seen = MixedRows(one, other, 0.25), {True: [], False: []}
    for number in range(96 // size):
        for row in mixed.batch(number, size).tokens:
            seen[bool(row[0] < 500)].append(int(row[0]))
    assert [len(seen[is_one]) for is_one in (True, False)] == [72, 24]
    for rows in seen.values():
        assert all(len(set(rows[begin : begin + 30])) == len(rows[begin : begin + 30]) for begin in range(0, len(rows), 30))


@pytest.mark.parametrize("size", [8, 3, 1])
def test_own_text_counts_its_odds_however_few_of_its_targets_are_scored(size):
    own = Rows([Encoded([5] * 200, [place % 4 == 0 for place in range(200)])], 8, 0)
    ordinary = Rows([Encoded([7] * 200, [True] * 200)], 8, 0)
    mixed = MixedRows(own, ordinary, 0.25, 6.0)
    assert mixed.batch(0, size).divisor == 1
    counts = {5: 0.0, 7: 0.0}
    for batch in (mixed.batch(number, size) for number in range(8)):
        assert torch.equal(batch.weights > 0, batch.scored)
        for token in counts:
            weights = batch.weights[(batch.targets == token) & batch.scored]
            assert len(weights.unique()) <= 1  # the targets of one text count alike
            counts[token] += float(weights.sum())
    assert counts == pytest.approx({5: 8 * 6 / 7, 7: 8 / 7})


def test_an_interruption_in_the_closing_phase_changes_no_bit_of_what_comes_out(opened):
    straight = opened()
    train(straight)
    expected = digest(newest(straight).arrays())
    for path in [*straight.home.state.glob("checkpoint-*")]:
        path.unlink()
    straight.home.adapters.rename(straight.home.root / "elsewhere")
    total = straight.total_steps
    for stop_after in (total - 2, 1):  # after the first closing step, and after the second
        cut = opened()
        assert train(cut, resume=cut.is_saved, stop_after=stop_after) == 1
        assert not cut.is_done
        assert not read_manifest(cut.home.adapters, 1)["layout"]["zero_expert"]
    last = opened()
    assert train(last, resume=True) == 2
    assert versions(last.home.adapters) == [2]  # what was left before is no version beside it
    assert digest(newest(last).arrays()) == expected
    assert checkpoint.load(last.home.state).progress["finished"]


def test_a_training_that_was_stopped_in_its_closing_phase_is_said_to_be_there(opened, run):
    cut = opened()
    train(cut, stop_after=STEPS + 16 + 1)  # expert, router, and of three closing steps one
    assert f"interrupted after the last of {STEPS} expert steps, with closing or local steps left" in run("status").stdout
    assert "of an interrupted training" in run("models", "list").stdout


def test_a_training_that_was_killed_before_its_first_state_leaves_no_plan_to_the_next_one(opened):
    train(opened())
    killed = opened("threads=2")
    killed.begin(STEPS, None)
    next(killed.steps())
    home = killed.home
    assert "threads" not in fixed_lines(home, home.settings(), {}, None).lines
    killed.save()
    assert fixed_lines(home, home.settings(), {}, None).lines["threads"] == 2


@pytest.mark.usefixtures("no_ordinary_text")
def test_without_a_zero_expert_a_training_ends_with_its_best_state(opened):
    run = opened("zero_expert=false")
    train(run)
    assert run.closing is None
    assert digest(newest(run).arrays()) == digest(run.trainer.best)
    assert not list(run.home.state.glob("ordinary-*"))


def test_an_interrupted_training_may_still_leave_out_the_zero_expert_before_its_closing_phase(opened):
    train(opened(), stop_after=3)
    run = opened("zero_expert=false")
    train(run, resume=True)
    assert not newest(run).layout.zero_expert


def test_an_interrupted_closing_phase_may_be_left_out_and_begun_anew(opened):
    train(opened(), stop_after=STEPS + 16 + 1)
    without = opened("zero_expert=false")
    without.begin(None, True)
    assert (without.closing, without.total_steps) == (None, STEPS + 16)
    without.save()
    assert not newest(without).layout.zero_expert


def test_a_training_that_was_begun_with_a_zero_expert_goes_on_to_it_without_being_asked_again(opened):
    run = opened()
    train(run, stop_after=3)
    again = open_training(run.home, resolve(run.home, run.home.settings(), lines=["threads=1"]))
    train(again, resume=True)
    assert newest(again).layout.zero_expert


def test_training_further_goes_on_without_the_zero_expert_and_closes_again(opened):
    run = opened()
    train(run)
    before = newest(run)
    again = opened()
    trainer = again.begin(STEPS, None)
    assert digest(trainer.adapters.arrays()) == digest(before.without_zero().arrays())
    for _ in again.steps():
        pass
    assert again.end() == 2
    assert newest(again).layout.zero_expert


def recorded(name):
    """What a version without zero experts wrote: manifest of the adapters, or progress and plan of an interrupted training."""
    return json.loads((Path(__file__).parent / "data" / f"earlier-{name}.json").read_text())


def test_adapters_of_an_earlier_version_are_trained_further_and_get_a_zero_expert(opened):
    run = opened("zero_expert=false")
    train(run)
    before = newest(run)
    manifest = recorded("manifest") | {"sha256": digest(before.arrays())}
    (run.home.adapters / "0001" / "manifest.json").write_text(json.dumps(manifest))
    again = opened()
    assert digest(newest(again).arrays()) == digest(before.arrays())  # they are chatted with as they are
    trainer = again.begin(STEPS, None)
    assert digest(trainer.adapters.arrays()) == digest(before.arrays())
    for _ in again.steps():
        pass
    assert again.end() == 2
    assert newest(again).layout.zero_expert


def test_an_interrupted_training_of_an_earlier_version_goes_on_and_closes(opened):
    run = opened()
    run.begin(STEPS, False)
    for _ in run.trainer.run(until=3):
        pass
    arrays, progress = run.trainer.state()
    checkpoint.save(run.home.state, arrays, recorded("progress"))
    (run.home.state / "plan.json").write_text(json.dumps(recorded("plan")))
    assert progress["expert_steps"] == recorded("progress")["expert_steps"]
    again = opened()
    assert train(again, resume=True) == 1
    assert again.warnings == []
    assert newest(again).layout.zero_expert


def test_the_checkpoint_of_a_training_without_one_has_but_its_optimiser_to_add(opened):
    run = opened("zero_expert=false")
    train(run, stop_after=3)
    found = checkpoint.load(run.home.state).progress
    assert found["schedule"] == recorded("progress")["schedule"] | {"steps": STEPS, "optimiser": "muon", "rate_steps": 50}
    assert "closing" not in found


def test_a_closing_phase_that_spoils_a_slight_gain_is_left_out(opened):
    run = opened()
    run.begin(STEPS, False)
    for _ in run.steps():
        pass
    run.closing._trainer.last_loss = run.trainer.first_loss
    run.end()
    assert digest(newest(run).arrays()) == digest(run.trainer.best)


def train_further(run, loss=None):
    """Trains from the newest adapters to the end of the closing phase, which has this loss."""
    run.begin(STEPS, None)
    for _ in run.steps():
        pass
    if loss is not None:
        run.closing._trainer.last_loss = loss(run)
    return run.end()


def test_what_a_model_with_a_zero_expert_has_to_be_beaten_by_is_measured_with_it(opened):
    train(opened())
    manifest, further = read_manifest(opened().home.adapters, 1), opened()
    assert train_further(further) == 2
    assert further.loss_before == pytest.approx(manifest["validation_loss"], abs=1e-6)
    assert further.trainer.first_loss != further.loss_before  # of the same experts without it
    assert read_manifest(further.home.adapters, 2)["validation_loss_before"] == further.loss_before


def test_a_model_never_loses_its_zero_expert_to_a_gain_smaller_than_what_it_costs(opened, run, tmp_path):
    first = opened()
    train(first)
    write_notes(run, tmp_path)
    kept, further = digest(newest(first).arrays()), opened()
    assert further.rows[0].num_new > 0
    assert train_further(further, lambda run: run.loss_before) is None
    assert further.trainer.is_better
    assert not further.is_better
    assert versions(further.home.adapters) == [1]
    assert digest(newest(further).arrays()) == kept
    assert opened().rows[0].num_new > 0  # what was not kept is still to be learned


def test_a_model_that_is_to_have_a_zero_expert_again_gets_one_whatever_that_costs(opened):
    train(opened("zero_expert=false"))
    further = opened()
    assert train_further(further, lambda run: run.trainer.first_loss + 1) == 2
    assert newest(further).layout.zero_expert
    assert further.loss_before == further.trainer.first_loss


def test_a_closing_phase_begins_with_the_zero_expert_that_the_model_had(opened):
    train(opened())
    before, further = newest(opened()), opened()
    further.begin(STEPS, None)
    for _ in further.trainer.run():
        pass
    closing = further._make_closing(further.trainer)
    seen = []
    closing._trainer.step = lambda: seen.append(closing.adapters.arrays()) or pytest.fail("one step is enough")
    with pytest.raises(pytest.fail.Exception):
        next(closing.run())
    for name, array in seen[0].items():
        if is_router(name):
            assert (array[-1] == before.arrays()[name][-1]).all()
            assert (array[:-1] == further.trainer.best[name]).all()


def test_an_interrupted_training_from_the_bare_base_leaves_the_model_in_use(opened):
    train(opened())
    cut = opened()
    assert train(cut, stop_after=STEPS) is None
    assert cut.trainer.is_better
    assert train(opened(), resume=True) == 2


@pytest.mark.parametrize("stop_after", [STEPS, STEPS + 16 + 1])  # before the closing phase, and in it
def test_a_model_with_a_zero_expert_stays_in_use_until_its_training_has_ended(opened, stop_after):
    train(opened())
    cut = opened()
    cut.begin(STEPS, None)
    for number, _ in enumerate(cut.steps(), 1):
        if number == stop_after:
            break
    assert cut.trainer.is_better
    assert cut.end() is None
    last = opened()
    assert train(last, resume=True) == 2
    assert newest(last).layout.zero_expert
    assert last.loss_before == pytest.approx(read_manifest(last.home.adapters, 1)["validation_loss"], abs=1e-6)


@pytest.mark.parametrize("ready", ["lora"], indirect=True)
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_lora_experts_have_a_zero_expert_if_it_is_asked_for(opened, ready, name):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[quantize]\n", f'[quantize]\nformat = "{name}"\n'))
    home = Home(ready)
    assert not resolve(home, home.settings()).settings.has_zero_expert
    run = opened()
    run.begin(STEPS, False)
    formats = [run.closing.model.block_format for event in run.steps() if event.phase == "closing"]
    assert run.end() == 1
    assert newest(run).layout == ExpertsConfig(1, 8, 16.0, 2, zero_expert=True)
    as_file = name if name == "Q4_0" else None  # to 8 bits a step would cost 1.6 times as much, and change next to nothing
    assert formats == [as_file] * run.closing.steps
