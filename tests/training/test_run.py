"""A training of a home: how it starts from what is there, and that it loses nothing between two writes."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.data import documents
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import TrainConfig
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.marks import Mark
from comigs_edge.home.versions import load, read_manifest, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.planning.plan import resolve
from comigs_edge.training import checkpoint, publishing
from comigs_edge.training.adamw import AdamW
from comigs_edge.training.muon import Muon
from comigs_edge.training.opening import open_training
from comigs_edge.training.pace import Pace
from comigs_edge.training.schedule import FURTHER_RATE
from comigs_edge.training.text import read_rows
from comigs_edge.training.time_limit import TimeLimit
from comigs_edge.training.trial import measure_pace
from tests.data.test_leaks import say

STEPS, STOP = 5, 4  # the router's turn comes after 4 expert steps


@pytest.fixture(params=["zero_expert=false", "zero_expert=true"])
def opened(ready, request):
    """Opens a training of a home with text, on one thread; `lines` go to the plan."""
    home = Home(ready)
    home.state.mkdir(exist_ok=True)  # as the lock does that a command takes

    def make(*lines):
        return open_training(home, resolve(home, home.settings(), lines=["threads=1", request.param, *lines]))

    return make


def interrupt(run):
    for _ in run.begin(STEPS, False).run(until=STOP):
        pass
    run.save()


def power_cut(*_):
    raise OSError("the power went")


def resume_to_the_last_step(opened):
    """An interrupted training, resumed and run to its last step, which is not saved."""
    interrupt(opened())
    run = opened()
    run.begin(None, True)
    for _ in run.steps():
        pass
    return run


def finish(run):
    run.begin(STEPS, False)
    for _ in run.steps():
        pass
    run.end()


def digest_of_newest(run):
    return read_manifest(run.home.adapters, versions(run.home.adapters)[-1])["sha256"]


def newest(run):
    saved = load(run.home.adapters, run.base.hparams, run.settings.base.sha256)
    return Adapters.from_arrays(saved.layout, run.base.hparams, saved.arrays)


def digest_of_initial(run):
    return digest(Adapters.initial(run.trainer.adapters.layout, run.base.hparams, TrainConfig().seed).arrays())


# What is there, and what --resume (True), --fresh (False) or neither of them makes of it.
STARTS = [
    ("nothing", None, "initial"), ("nothing", True, "refused"), ("nothing", False, "initial"),
    ("interrupted", None, "resumed"), ("interrupted", True, "resumed"), ("interrupted", False, "initial"),
    ("finished", None, "newest"), ("finished", True, "refused"), ("finished", False, "initial"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "resume", "start"), STARTS)
def test_what_a_training_starts_from_follows_from_the_state_and_the_option(opened, state, resume, start):
    earlier, run = opened(), opened()
    {"nothing": lambda _: None, "interrupted": interrupt, "finished": finish}[state](earlier)
    if start == "refused":
        with pytest.raises(ComigsError, match="no interrupted training to resume"):
            run.begin(STEPS, resume)
        return
    trainer = run.begin(STEPS, resume)
    assert run.resumed == (start == "resumed")
    assert trainer.expert_steps == (STOP if start == "resumed" else 0)
    now = digest(trainer.adapters.arrays())
    if start == "resumed":
        assert now == digest(earlier.trainer.adapters.arrays()) != digest_of_initial(run)
    else:
        assert now == (digest(newest(run).without_zero().arrays()) if start == "newest" else digest_of_initial(run))


def test_a_resumed_training_refuses_other_settings_than_its_own(opened):
    interrupt(opened())
    with pytest.raises(ComigsError, match=f"ask for steps = {STEPS + 1} where it is {STEPS} in the interrupted"):
        opened().begin(STEPS + 1, None)


def moments(run):
    return {name: array.copy() for name, array in run.trainer.state()[0].items() if name.startswith(("exp_avg", "momentum"))}


def test_a_training_that_goes_on_has_the_moments_of_the_finished_one_and_learns_more_slowly(opened):
    first, second, anew = opened(), opened(), opened()
    finish(first)
    trainer, before = second.begin(STEPS, None), moments(first)
    assert before
    assert moments(second).keys() == before.keys()
    for name, array in moments(second).items():
        np.testing.assert_array_equal(array, before[name])
    assert trainer.scores == first.trainer.scores
    assert trainer.schedule.learning_rate(0) == pytest.approx(FURTHER_RATE * first.trainer.schedule.learning_rate(0))
    assert anew.begin(STEPS, False).schedule.learning_rate(0) == first.trainer.schedule.learning_rate(0)
    assert not moments(anew)


def test_a_training_of_what_a_fleet_has_changed_begins_at_the_whole_rate(opened):
    first, run = opened(), opened()
    first.begin(STEPS, False)
    for _ in first.steps():
        first.mark = first.best_mark = Mark("fleet/1/", 0)
    first.end()
    assert run.begin(STEPS, None).schedule.rate_factor == 1
    assert run.mark.word == "fleet/1/"
    assert not moments(run)


def test_the_moments_of_another_base_are_not_taken_up(opened):
    first, run = opened(), opened()
    finish(first)
    state = checkpoint.load(first.home.state)
    checkpoint.save(first.home.state, state.arrays, state.progress | {"base_sha256": "other"})
    run.begin(STEPS, None)
    assert not moments(run)


def test_a_training_that_goes_on_is_resumed_bit_for_bit_at_its_own_rate(opened):
    finish(opened())
    part, straight, resumed = opened(), opened(), opened()
    for _ in straight.begin(STEPS, None).run():
        pass
    for _ in part.begin(STEPS, None).run(until=STOP):
        pass
    part.save()
    for _ in resumed.begin(None, None).run():
        pass
    assert resumed.resumed
    assert digest(resumed.trainer.adapters.arrays()) == digest(straight.trainer.adapters.arrays())


def test_a_training_that_earlier_versions_began_goes_on_with_their_optimiser(opened):
    path = opened().home.root / "config.toml"
    text = path.read_text()
    path.write_text(text.replace("[train]\n", '[train]\noptimiser = "adamw"\n'))
    interrupt(opened())
    assert "optimiser" not in checkpoint.load(opened().home.state).progress["schedule"]  # as earlier versions wrote it
    path.write_text(text)
    resumed = opened()
    assert type(resumed.begin(None, None).experts) is AdamW
    assert any(name.startswith("exp_avg_sq.generalist") for name in moments(resumed))
    assert type(opened().begin(STEPS, False).experts) is Muon


def test_a_training_that_a_newer_version_began_is_refused_in_a_sentence(opened):
    interrupt(opened())
    state = checkpoint.load(opened().home.state)
    newer = state.progress | {"schedule": state.progress["schedule"] | {"spiral": 3}}
    checkpoint.save(opened().home.state, state.arrays, newer)
    with pytest.raises(ComigsError, match=r"a newer version began .* \(it has spiral\)"):
        opened().begin(None, None)


def test_a_training_goes_on_by_the_course_that_it_began_with(opened):
    interrupt(opened())
    home = opened().home
    settings = home.root / "config.toml"
    text = settings.read_text().replace("[train]\n", '[train]\nschedule = "wsd"\npatience = 2\npasses = 1.0\n')
    settings.write_text(text)
    assert opened().begin(None, None).schedule == opened().begin(STEPS, None).schedule
    schedule = opened().begin(None, None).schedule
    assert (schedule.schedule, schedule.patience, schedule.steps) == ("cosine", 0, STEPS)
    assert opened().begin(None, False).schedule.schedule == "wsd"


@pytest.mark.parametrize("write", ["save", "end"])
def test_no_training_is_marked_as_finished_before_its_adapters_are_on_disk(opened, monkeypatch, write):
    run = resume_to_the_last_step(opened)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "save", power_cut)  # of the adapters
        with pytest.raises(OSError, match="the power went"):
            getattr(run, write)()
    assert not checkpoint.load(run.home.state)[1]["finished"]
    again = opened()
    again.begin(None, True)
    for _ in again.steps():
        pass
    assert again.end() == 1
    assert checkpoint.load(run.home.state)[1]["finished"]
    assert digest_of_newest(again) == digest(run.result()[0])


def test_a_kill_between_the_adapters_and_the_mark_makes_no_second_version(opened, monkeypatch):
    run = resume_to_the_last_step(opened)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", power_cut)
        with pytest.raises(OSError, match="the power went"):
            run.end()
    assert versions(run.home.adapters) == [1]
    again = opened()
    again.begin(None, True)
    for _ in again.steps():
        pass
    assert again.end() == 1
    assert versions(run.home.adapters) == [1]


def test_a_model_that_is_no_better_than_its_start_is_not_published(opened):
    run = opened()
    trainer = run.begin(STEPS, None)
    for _ in run.steps():
        pass
    trainer.best_loss = trainer.first_loss
    assert run.end() is None
    assert versions(run.home.adapters) == []


def test_a_trainer_beside_an_interrupted_training_leaves_its_files_alone(opened):
    interrupt(opened("blocks=1", "cache=true"))
    run = opened("cache=true")
    layout = run.begin(None, True).adapters.layout

    def state():
        return {path.name: path.stat().st_mtime_ns for path in run.home.state.iterdir()}

    before = state()
    assert sum(name.startswith("below-") for name in before) == 2
    run.make_trainer(Adapters.initial(layout, run.base.hparams, 0)).validate()
    assert measure_pace(run).step > 0
    assert state() == before


def test_the_plan_sets_torch_up(opened):
    run = opened("backend=onednn", "keep=false")
    try:
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (1, "medium")
        assert not run.base.keep
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_best_state_is_published_though_training_has_gone_on(opened):
    run = opened()
    for _ in run.begin(STEPS, False).run():
        pass
    for tensor in run.trainer.adapters.named.values():
        tensor.detach().add_(1.0)
    run.end()
    assert digest_of_newest(run) == digest(run.trainer.best) != digest(run.trainer.adapters.arrays())


def test_a_generalist_has_learned_the_tokens_of_expert_steps_and_the_best_one_those_until_then(opened):
    run = opened()
    trainer, best = run.begin(STEPS, False), 0
    for event in trainer.run():
        run.count(event)
        best = trainer.expert_steps if event.is_best else best
    step = run.plan.batch * run.plan.context
    assert (run.mark.tokens, run.best_mark.tokens) == (STEPS * step, best * step)
    run.count(replace(event, phase="expert", is_best=False))
    assert (run.mark.tokens, run.best_mark.tokens) == ((STEPS + 1) * step, best * step)


def test_of_long_text_an_eighth_as_much_is_validation_text_and_texts_end_as_answers_do(opened, tmp_path):
    home, rng = opened().home, random.Random(3)
    tokenizer, settings = Tokenizer(home.base_file), home.settings()
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"text": say(rng, 30)}) for _ in range(100)))
    corpus(home, settings).add(documents.read([tmp_path / "more.jsonl"]))
    text = {split: list(corpus(home, settings).documents(split)) for split in ("training", "validation")}
    lengths = {split: [len(tokenizer.encode(each).ids) + 1 for each in found] for split, found in text.items()}
    tokens = 8 * lengths["validation"][0]  # the first document of validation text is an eighth
    read = read_rows(home, settings, 32, tokenizer, [], lambda *_: None, tokens)
    for rows, limit, split in zip(read[:2], (tokens, tokens // 8), text, strict=True):
        count = next(count for count in range(1, 999) if sum(lengths[split][:count]) >= limit)
        targets = torch.cat([batch.targets[batch.scored] for batch in rows.first(len(rows), 1)])
        assert len(targets) == sum(lengths[split][:count]) - count  # all but the first token of each
        assert (targets == tokenizer.eos).sum() == count


class Clock:
    """Every step takes what it says, in minutes."""

    def __init__(self, step):
        self.step, self.now = step, 0.0

    def __call__(self):
        return self.now


def train_within(run, minutes, step, guess, resume=False):
    """The minutes that a training takes whose steps take `step(number)` where `guess` was measured."""
    clock = Clock(step)
    run.begin(None, resume)
    limit = TimeLimit(run, Pace(step=guess, quantised_step=guess, validation=0), minutes, clock)
    limit.begin()
    for number, event in enumerate(run.trainer.run()):
        clock.now += step(number)
        limit.after(event, step(number))
    return clock.now


@pytest.mark.parametrize("slower", [0.5, 2.5])
def test_a_training_ends_with_its_minutes_though_its_pace_was_guessed_wrongly(opened, slower):
    run = opened("blocks=1")
    run.ordinary = ()
    planned = {}  # steps, before each one

    def step(number):
        planned[number] = run.trainer.schedule.steps
        return slower

    assert 36 <= train_within(run, 40, step, guess=1) <= 44
    assert run.trainer.is_done
    assert planned[3] == pytest.approx(run.trainer.expert_steps, rel=0.1)  # so the rates are those of the whole course


def test_a_training_ends_with_its_minutes_though_steps_become_slower_on_the_way(opened):
    run = opened("blocks=1")
    run.ordinary = ()
    assert 36 <= train_within(run, 40, lambda number: 0.5 if number < 30 else 1.2, guess=1) <= 44


def test_an_interrupted_training_that_gets_minutes_ends_with_them(opened):
    interrupt(opened())
    run = opened()
    run.ordinary = ()
    assert 25 <= train_within(run, 30, lambda number: 1, guess=1, resume=True) <= 33
    assert run.trainer.is_done
    assert run.trainer.expert_steps > STEPS


def test_minutes_too_few_for_what_is_due_are_known_before_the_first_step(opened):
    pace = Pace(step=1, quantised_step=1, validation=0)
    new = opened()
    new.begin(None, None)
    assert not TimeLimit(new, pace, 0.5, Clock(None)).begin()
    begun = opened()
    for _ in begun.begin(STEPS, False).run(until=STOP - 1):
        pass
    begun.save()
    run = opened()
    run.begin(None, True)
    assert not TimeLimit(run, pace, 0.5, Clock(None)).begin()  # the router's turn, and the closing phase if there is one
    assert TimeLimit(run, pace, 60, Clock(None)).begin()


def test_minutes_that_many_steps_fill_to_the_brim_are_not_called_too_few(opened):
    run, ticks = opened(), itertools.count(0.0, 0.3)  # seconds pass between looking at the clock and looking again
    run.begin(None, None)
    assert TimeLimit(run, Pace(step=0.1, quantised_step=0.1, validation=0), 60, lambda: next(ticks)).begin()
    assert run.trainer.schedule.steps > 100


def test_one_long_step_does_not_end_a_training_at_half_time(opened):
    run = opened("blocks=1")
    run.ordinary = ()
    assert 100 <= train_within(run, 120, lambda number: 60 if number == 1 else 0.5, guess=0.5) <= 126


@pytest.mark.parametrize("resume", [False, True])
def test_the_last_step_of_a_training_without_a_router_is_measured(opened, resume):
    lines = ("specialists=0", "blocks=1")
    if resume:
        interrupt(opened(*lines))
    run = opened(*lines)
    run.ordinary = ()
    train_within(run, 3 if resume else 6.5, lambda number: 1, guess=1, resume=resume)
    assert run.trainer.curves.facts()["validation"][-1][0] == run.trainer.expert_steps


def test_a_resumed_training_never_deletes_what_another_one_has_left(opened):
    one = opened()
    interrupt(one)
    kept = one.publish()
    other = opened()
    for _ in other.begin(STEPS, False).run(until=STOP):
        pass
    other.save()  # and the power goes: no version of it is there
    resumed = opened()
    trainer = resumed.begin(None, None)
    assert resumed.publish() is None  # it began anew, so the model in use stays until it has ended
    for _ in resumed.steps():
        trainer.best = {name: array + 1 for name, array in trainer.best.items()}
    assert resumed.save() > kept
    assert kept in versions(one.home.adapters)


def test_a_version_of_a_training_that_ended_with_nothing_better_is_a_finished_one(opened):
    run = opened("zero_expert=false")
    interrupt(run)
    number = run.publish()
    assert read_manifest(run.home.adapters, number)["unfinished"]
    resumed = opened("zero_expert=false")
    trainer = resumed.begin(None, None)
    trainer.best_loss = -1.0  # nothing is better
    for _ in resumed.steps():
        pass
    assert resumed.end() == number
    assert "unfinished" not in read_manifest(run.home.adapters, number)
