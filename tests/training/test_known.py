"""New text comes first: what a finished training has not seen is learned by the next one, and the rest beside it."""

import json
import math
import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import Mark
from comigs_edge.home.versions import versions
from comigs_edge.planning.plan import resolve
from comigs_edge.training import checkpoint
from comigs_edge.training import opening as training
from comigs_edge.training.known import is_learned
from comigs_edge.training.passage import Passage
from tests.tiny import some_text


@pytest.fixture
def home(ready):
    home = Home(ready)
    home.state.mkdir(exist_ok=True)
    return home


def open_training(home, resume=None):
    return training.open_training(home, resolve(home, home.settings(), lines=["threads=1", "zero_expert=false"]), resume=resume)


def train(home, resume=None, until=None, steps=None):
    """Trains, to the end or until an expert step, and finds something better."""
    run = open_training(home, resume)
    trainer = run.begin(steps, resume)
    for _ in trainer.run(until):
        pass
    trainer.best, trainer.best_loss = trainer.adapters.arrays(), trainer.first_loss - 1
    run.save()
    return run


def write_notes(run, folder, name="evening", documents=4):
    notes = [{"text": f"{name} {number} " * 20} for number in range(documents)]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, notes)))
    run("data", "add", folder / f"{name}.jsonl")


def new_ids(home, name="evening"):
    """Token ids of each of these notes that is training text."""
    tokenizer = Tokenizer(home.base_file)
    found = [each for each in corpus(home, home.settings()).documents("training") if each.text.startswith(name)]
    assert found
    return [tokenizer.encode(each, with_end=True).ids for each in found]


def test_new_text_is_read_first_and_then_the_others_go_on_in_their_order(home, run, tmp_path):
    first = train(home)
    write_notes(run, tmp_path)
    rows, ids = open_training(home).rows[0], new_ids(home)
    assert rows.num_new == -(-(sum(map(len, ids)) - 1) // 64)
    assert rows.new_reads == 2 * rows.num_new  # as often as `passes` says
    reads = [row for number in range(rows.new_reads) for row in rows.batch(number, 2).tokens]
    new = torch.tensor(list(chain.from_iterable(ids)))
    found = [
        at
        for row in reads[: rows.new_reads]
        for at in range(0, len(new), 64)
        if torch.equal(row[: len(new) - at], new[at : at + 64])
    ]
    assert sorted(found) == sorted(2 * [*range(0, len(new) - 1, 64)])
    assert rows.first_row == 4 * first.trainer.expert_steps
    plain, rows.new_reads = reads[rows.new_reads :], 0  # now what would be read if nothing was new
    there = [row for number in range(len(plain)) for row in rows.batch(number, 1).tokens]
    assert all(torch.equal(one, other) for one, other in zip(plain, there, strict=True))


def test_a_training_of_new_text_is_as_long_as_that_takes_and_plan_and_train_say_so(home, run, tmp_path):
    run("train")
    write_notes(run, tmp_path, documents=30)
    rows = open_training(home).rows[0]
    steps = math.ceil(2 * rows.num_new / 4)
    assert 3 < steps < 2 * len(rows) / 4 - 10
    # The training before has counted how long a token is, where a first plan guesses four bytes.
    assert json.loads(run("plan", "--json").stdout)["plan"]["steps"] == pytest.approx(steps, rel=0.25)
    found = run("train", "--json")
    assert json.loads(found.stdout)["expert_steps"] == steps
    assert f"new text comes first, {rows.num_new} of {len(rows)} rows" in " ".join(found.stderr.split())


def test_new_text_that_is_half_of_all_is_nothing_special(home, run, tmp_path):
    train(home)
    (tmp_path / "much.txt").write_text(some_text(paragraphs=60, seed=9))
    run("data", "add", tmp_path / "much.txt")
    settings = home.root / "config.toml"
    settings.write_text(settings.read_text().replace("# steps = 200", "steps = 2000"))
    rows = open_training(home).rows[0]
    assert rows.num_new > len(rows) / 2
    assert rows.new_reads == 0


def test_a_training_of_new_text_is_resumed_bit_for_bit_and_its_text_is_known_only_then(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    shutil.copytree(home.root, tmp_path / "other")
    whole = train(home)
    other = Home(tmp_path / "other")
    part = train(other, until=2)
    assert part.rows[0].num_new
    resumed = train(other, resume=True)
    assert not resumed.warnings
    assert digest(resumed.trainer.adapters.arrays()) == digest(whole.trainer.adapters.arrays())
    assert open_training(other).rows[0].num_new == open_training(home).rows[0].num_new == 0


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_training_whose_new_text_is_gone_when_it_is_resumed_ends_all_the_same(home, run, tmp_path, is_forgotten):
    train(home)
    write_notes(run, tmp_path)
    part = train(home, until=1)
    assert part.rows[0].new_reads > 4  # new rows are left to read
    if is_forgotten:
        run("data", "remove", 2)
    else:
        home.fleet.mkdir()  # whose members learn all text alike
    resumed = train(home, resume=True)
    assert not resumed.rows[0].new_reads
    assert resumed.trainer.is_done


def test_a_training_of_local_text_alone_is_resumed_after_an_interruption(home, run, tmp_path):
    train(home)
    (tmp_path / "diary.txt").write_text(some_text(seed=5))
    run("data", "add", "--local", tmp_path / "diary.txt")
    cut = open_training(home)
    assert cut.begin(None, None).schedule.steps == 0
    for number, _ in enumerate(cut.steps(), 1):
        if number == 3:
            break
    cut.end()
    assert "training interrupted with steps of local text left" in " ".join(run("status").stdout.split())
    resumed = open_training(home, resume=True)
    resumed.begin(None, True)
    assert resumed.local.steps == 3
    for _ in resumed.steps():
        pass
    assert resumed.is_done


def test_what_made_nothing_better_stays_new(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    worse = open_training(home)
    trainer = worse.begin(None, None)
    for _ in trainer.run():
        pass
    trainer.best_loss, made = trainer.first_loss, versions(home.adapters)
    worse.save()
    assert versions(home.adapters) == made
    write_notes(run, tmp_path, "morning")
    assert open_training(home).rows[0].num_new > worse.rows[0].num_new > 0


def test_new_shared_text_that_made_nothing_better_stays_new_where_local_text_did(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    (tmp_path / "diary.txt").write_text(some_text(seed=5))
    run("data", "add", "--local", tmp_path / "diary.txt")
    mixed, made = open_training(home), versions(home.adapters)
    trainer = mixed.begin(None, None)
    for _ in mixed.steps():
        trainer.best_loss = trainer.first_loss
    local = mixed.local.trainer
    local.best, local.best_loss = local.adapters.arrays(), local.first_loss - 1
    mixed.save()
    assert len(versions(home.adapters)) == len(made) + 1
    assert open_training(home).rows[0].num_new == mixed.rows[0].num_new > 0


def test_of_a_model_that_was_taken_back_or_that_a_fleet_has_changed_nothing_is_known(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    train(home)
    write_notes(run, tmp_path, "morning")
    assert open_training(home).rows[0].num_new
    run("models", "rollback")
    assert not open_training(home).rows[0].num_new
    first = open_training(home)
    first.begin(4, False)
    for _ in first.trainer.run():
        first.mark = first.best_mark = Mark("fleet/1/", 0)
    first.save()
    write_notes(run, tmp_path, "noon")
    assert not open_training(home).rows[0].num_new


def test_a_config_that_is_broken_while_a_training_runs_hinders_no_saving(home, run):
    running = open_training(home)
    for _ in running.begin(None, None).run(until=1):
        pass
    settings = home.root / "config.toml"
    text = settings.read_text()
    settings.write_text("[train\n")
    running.save()
    settings.write_text(text)
    assert checkpoint.load(home.state).progress["expert_steps"] == 1


def test_in_a_fleet_nothing_is_known(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    assert open_training(home).rows[0].new_reads
    home.fleet.mkdir()
    assert not open_training(home).rows[0].num_new


def test_in_a_fleet_no_state_between_a_generalist_and_another_is_kept(home):
    train(home)
    assert open_training(home).begin(None, None).looks_back
    home.fleet.mkdir()
    assert not open_training(home).begin(None, None).looks_back


def test_a_training_from_the_bare_base_knows_nothing(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    assert open_training(home).rows[0].num_new
    assert not open_training(home, resume=False).rows[0].num_new


def test_a_checkpoint_of_before_knows_nothing(home, run, tmp_path):
    train(home)
    state = checkpoint.load(home.state)
    del state.arrays["known"], state.progress["known"]
    checkpoint.save(home.state, state.arrays, state.progress)
    write_notes(run, tmp_path)
    assert not open_training(home).rows[0].num_new


def test_what_is_known_is_read_without_the_other_arrays(home):
    train(home)
    light, whole = checkpoint.load(home.state, with_arrays=False), checkpoint.load(home.state)
    assert light.arrays.keys() == {"known", "tried", "begun"}
    hashes = corpus(home, home.settings()).hashes("training", local=False)
    assert sorted(hashes) == light.arrays["known"].view(np.uint64).tolist() == whole.arrays["known"].view(np.uint64).tolist()


def test_rows_of_new_text_do_not_count_as_read_of_the_others():
    one = Passage(start="a", end="b", rows=10, new=3)
    assert one.after(2) == Passage(start="a", end="b", rows=10, new_before=2)
    assert one.after(9) == Passage(start="a", end="b", rows=10, first_row=6, new_before=3)


def test_text_is_read_when_it_was_read_so_often_and_none_is_left_out():
    assert [Passage(rows=10, first_row=12, new_before=each).is_read(2) for each in (7, 8)] == [False, True]
    assert not Passage(end="b", rows=10, first_row=30).is_read(2)
    assert not Passage(start="a", rows=10, first_row=30).is_read(2)


def test_without_new_text_nothing_is_trained_unless_steps_are_named(home, run, tmp_path):
    def train_again(*options):
        found = run("train", "--json", *options)
        return json.loads(found.stdout)["expert_steps"], "nothing new to learn from" in found.stderr

    assert train_again() == (math.ceil(2 * len(open_training(home).rows[0]) / 4), False)
    assert json.loads(run("plan", "--json").stdout)["plan"]["steps"] == 0
    told = run("plan").stdout
    assert "there is nothing new to learn from" in told
    assert told.rstrip().endswith("next: comigs-edge chat")
    before = checkpoint.load(home.state).arrays
    assert train_again() == train_again("--minutes", 1) == (0, True)
    after = checkpoint.load(home.state).arrays
    moments = [name for name in after if name.split(".")[0] not in ("current", "best")]
    again = run("train")
    assert "nothing was trained, so your model stays as it is" in again.stdout
    assert "0 steps" not in again.stderr
    assert len(moments) > 10
    assert all(np.array_equal(after[name], before[name]) for name in moments)
    assert train_again("--steps", 1) == (1, True)
    assert train_again("--fresh", "--steps", 1) == (1, False)
    assert train_again()[0] > 10  # that one has read a part of it
    write_notes(run, tmp_path)
    assert not train_again()[1]
    (tmp_path / "evening.jsonl").unlink()
    run("data", "remove", 2)
    assert train_again() == (0, True)


def test_text_that_comes_while_one_is_interrupted_is_new_to_the_next_training(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    train(home, until=1)
    write_notes(run, tmp_path, "late")
    train(home, resume=True)
    left = open_training(home)
    assert left.rows[0].num_new == left.rows[0].new_reads / 2 == -(-(sum(map(len, new_ids(home, "late"))) - 1) // 64)
    assert not is_learned(home, home.settings(), checkpoint.load(home.state))


def test_what_a_training_was_too_short_for_stays_new(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path, documents=12)
    wanted = open_training(home).rows[0].num_new
    assert wanted > 4
    train(home, steps=1)
    assert open_training(home).rows[0].num_new == wanted
    settings = home.settings()
    settings = replace(settings, train=replace(settings.train, passes=0.1))
    assert not is_learned(home, settings, checkpoint.load(home.state))
    assert not open_training(home).news.startswith("there is no")


def test_new_text_that_the_most_steps_cannot_read_is_nothing_special(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path, documents=12)
    settings = home.root / "config.toml"
    settings.write_text(settings.read_text().replace("# steps = 200", "steps = 3"))
    rows = open_training(home).rows[0]
    assert rows.num_new * 2 > 3 * 4
    assert rows.new_reads == 0


def test_where_old_text_was_not_read_yet_new_text_comes_first_in_a_training_as_long_as_others(home, run, tmp_path):
    train(home, steps=4)
    write_notes(run, tmp_path)
    run_of_new = open_training(home)
    assert run_of_new.rows[0].new_reads
    assert run_of_new.begin(None, None).schedule.steps == math.ceil(2 * len(run_of_new.rows[0]) / 4)
    assert json.loads(run("plan", "--json").stdout)["plan"]["steps"] > 20
    train(home)
    assert open_training(home).rows[0].num_new == 0
    write_notes(run, tmp_path, "morning")
    assert open_training(home).begin(None, None).schedule.steps < 10  # now all of it was read


def test_a_whole_local_phase_follows_a_short_training(home, run, tmp_path):
    train(home)
    write_notes(run, tmp_path)
    (tmp_path / "diary.txt").write_text(some_text(paragraphs=8, seed=5))
    run("data", "add", "--local", tmp_path / "diary.txt")
    both = open_training(home)
    trainer = both.begin(None, None)
    assert trainer.schedule.steps == math.ceil(both.rows[0].new_reads / 4) < 10
    local, planned = both.local_text, json.loads(run("plan", "--json").stdout)["plan"]["local_steps"]
    assert planned > 20  # by tokens of four bytes, which are shorter here
    assert local.steps(trainer.schedule) == math.ceil(3 * len(local.training) / (0.5 * 4)) > 20
    new = {tuple(row.tolist()) for number in range(both.rows[0].new_reads) for row in both.rows[0].batch(number, 1).tokens}
    read = {tuple(row.tolist()) for number in range(3) for row in local.shared.batch(number, 4).tokens}
    assert not new & read


def test_for_local_text_alone_shared_text_is_not_read_again(home, run, tmp_path):
    train(home)
    shutil.copytree(home.root, tmp_path / "other")
    (tmp_path / "diary.txt").write_text(some_text(paragraphs=8, seed=5))
    run("data", "add", "--local", tmp_path / "diary.txt")
    assert not is_learned(home, home.settings(), checkpoint.load(home.state))
    local = open_training(home)
    local.begin(None, None)
    phases = {event.phase for event in local.steps()}
    local.save()
    assert (local.trainer.schedule.steps, phases) == (0, {"local"})
    assert is_learned(home, home.settings(), checkpoint.load(home.state))
    without = train(Home(tmp_path / "other"))
    for name, array in without.trainer.state()[0].items():  # what the next training begins with is the same
        assert np.array_equal(array, local.trainer.state()[0][name])


def test_a_resumed_training_says_nothing_of_new_text(home, run, tmp_path):
    run("train")
    write_notes(run, tmp_path)
    train(home, until=1)
    assert "new text" not in run("train", "--resume").stderr


def test_minutes_give_no_more_steps_than_reading_the_text_takes(home, run, tmp_path):
    found = run("train", "--minutes", 20, "--json")
    assert json.loads(found.stdout)["expert_steps"] == math.ceil(2 * len(open_training(home).rows[0]) / 4)
    assert "in 20 minutes" not in found.stderr
    write_notes(run, tmp_path)
    rows = open_training(home).rows[0]
    found = run("train", "--minutes", 3, "--json")
    assert json.loads(found.stdout)["expert_steps"] == math.ceil(2 * rows.num_new / 4)
    assert "in 3 minutes" not in found.stderr


def test_an_interrupted_training_is_gone_on_with_though_its_text_was_read(home, run, tmp_path):
    settings = home.settings()
    settings = replace(settings, train=replace(settings.train, passes=0.1))
    train(home)
    assert is_learned(home, settings, checkpoint.load(home.state))
    train(home, until=1, steps=4)
    assert not is_learned(home, settings, checkpoint.load(home.state))
    train(home, resume=True)
    assert is_learned(home, settings, checkpoint.load(home.state))
    write_notes(run, tmp_path)
    assert not is_learned(home, settings, checkpoint.load(home.state))
    train(home)
    assert is_learned(home, settings, checkpoint.load(home.state))


def test_experts_in_the_last_block_learn_new_text_with_their_cache_as_without(home, run, tmp_path):
    def open_cached(home, cache):
        lines = ["threads=1", "zero_expert=false", "blocks=1", f"cache={cache}"]
        return training.open_training(home, resolve(home, home.settings(), lines=lines))

    first = open_cached(home, "false")
    for _ in first.begin(None, False).run():
        pass
    first.end()
    write_notes(run, tmp_path)
    ends = []
    shutil.copytree(home.root, tmp_path / "other")
    for place, cache in ((home, "true"), (Home(tmp_path / "other"), "false")):
        each = open_cached(place, cache)
        assert each.rows[0].num_new
        for _ in each.begin(None, None).run():
            pass
        ends.append(each.trainer)
    assert ends[0].caches
    assert not ends[1].caches
    for one, other in zip(*(each.adapters.arrays().values() for each in ends), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
