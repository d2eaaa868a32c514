"""Local text: specialists and router learn it, and no bit of what the generalist does depends on it."""

import json
import random
import re

import pytest

from comigs_edge.arrays import digest
from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.folders import Manner
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import load, read_manifest
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.planning.plan import disk_needed, resolve
from comigs_edge.training import checkpoint
from comigs_edge.training import schedule as course
from comigs_edge.training.batches import Rows
from comigs_edge.training.local import LocalPhase, LocalText
from comigs_edge.training.opening import open_training
from coordinator.protocol.generalist import may_leave
from tests.data.test_leaks import say
from tests.training.test_trainer import schedule

STEPS = 8
DIARY = "the red kite flies over the old mill at dawn and nobody sees it but the miller and his cat . " * 60


@pytest.fixture(params=["zero_expert=false", "zero_expert=true"])
def opened(ready, request):
    home = Home(ready)
    home.state.mkdir(exist_ok=True)
    lines = ["threads=1", request.param]
    return lambda: open_training(home, resolve(home, home.settings(), lines=lines))


def add_local(tmp_path, words=DIARY):
    diary = tmp_path / "diary.txt"
    diary.write_text(words)
    home = Home(tmp_path / "home")
    return corpus(home, home.settings()).add(documents.read([diary]), manner=Manner(local=True))


def train(run, stop_after=None, resume=None):
    """The generalist and its losses after every step of a training, and what it ends with."""
    run.begin(STEPS, resume)
    seen = []
    for number, event in enumerate(run.steps(), 1):
        run.count(event)
        if event.phase in ("expert", "router"):
            seen.append((digest(run.trainer.adapters.generalist()), event.loss, event.validation_loss))
        if number == stop_after:
            break
    return seen, run.end(), run.mark


def newest(run):
    return load(run.home.adapters, run.base.hparams, run.settings.base.sha256)


def test_the_generalist_is_the_same_to_the_last_bit_with_and_without_local_text(opened, tmp_path):
    rounds = {}
    for name in ("without", "with"):
        if name == "with":
            for path in [*Home(tmp_path / "home").state.glob("checkpoint-*")]:
                path.unlink()
            (tmp_path / "home" / "adapters").rename(tmp_path / "elsewhere")
            add_local(tmp_path)
        first, again = opened(), None
        found = [train(first, resume=False)]
        again = opened()
        found.append(train(again))  # further, from what the first one has made
        rounds[name] = [*found, again.text, digest({n: a for n, a in newest(again).arrays.items() if may_leave(n)})]
        assert (again.local is not None) == (name == "with")
    assert rounds["with"] == rounds["without"]


def test_the_plan_says_how_long_local_text_takes_and_its_room_is_asked_for(ready, run, tmp_path):
    before = json.loads(run("plan", "--json").stdout)["plan"]
    add_local(tmp_path)
    plan = json.loads(run("plan", "--json").stdout)["plan"]
    assert (before["local_steps"], plan["steps"]) == (0, before["steps"])
    shown = run("train", "--steps", STEPS, "--plan", "zero_expert=false", "--json")
    (local,) = re.findall(rf", {STEPS} steps in less than a minute, then (\d+) of local text in less than a minute", shown.stderr)
    assert 0 < int(local) <= plan["local_steps"]
    home = Home(ready)
    resolved = resolve(home, home.settings())
    assert disk_needed(resolved.plan, resolved.base, has_local=True) > 1.5 * disk_needed(resolved.plan, resolved.base)


def test_local_text_shapes_specialists_and_router_and_never_the_generalist(opened, tmp_path):
    add_local(tmp_path)
    run = opened()
    assert train(run, resume=False)[1] == 1
    saved = newest(run)
    changed = {name for name, array in saved.arrays.items() if (array != saved.shared[name]).any()}
    assert {name.split(".")[0] for name in changed} == {"specialist", "router"}
    assert not any(map(may_leave, changed))
    manifest = read_manifest(run.home.adapters, 1)
    assert manifest["all_validation_loss"] < manifest["all_validation_loss_before"]
    text = run.local_text.training
    losses = [
        run.make_trainer(Adapters.from_arrays(saved.layout, run.base.hparams, arrays)).validation.mean_loss(text.first(9, 4))
        for arrays in (saved.arrays, saved.shared)
    ]
    assert losses[0] < losses[1]


def test_half_of_the_rows_that_specialists_learn_from_are_local(tiny_base, make_adapters):
    shared, local = (Rows([Encoded([token] * 200, [True] * 200)], 8, 0) for token in (5, 7))
    text = LocalText(training=local, validation=local, shared=shared)
    phase = LocalPhase(make_adapters(2), text, schedule(), None, lambda adapters: Model(tiny_base, adapters))
    learned = [phase.trainer.training.batch(number, 3).tokens[:, 0] for number in range(4)]
    assert [int((tokens == 7).sum()) for tokens in learned] == [1, 2, 1, 2]
    assert [int((tokens == 5).sum()) for tokens in learned] == [2, 1, 2, 1]


@pytest.mark.parametrize("rows", [course.CLOSING_ROWS, 0])  # an earlier version did not look at the rows of closing steps
def test_an_interruption_in_the_local_phase_changes_no_bit_of_what_comes_out(opened, tmp_path, monkeypatch, rows):
    add_local(tmp_path)
    monkeypatch.setattr(course, "CLOSING_ROWS", rows)
    straight = opened()
    train(straight, resume=False)
    expected = digest(newest(straight).arrays)
    for path in [*straight.home.state.glob("checkpoint-*")]:
        path.unlink()
    straight.home.adapters.rename(tmp_path / "elsewhere")
    cut = opened()
    train(cut, stop_after=straight.steps_done - 3, resume=False)
    assert cut.local is not None
    assert not cut.is_done
    monkeypatch.undo()
    last = opened()
    train(last, resume=True)
    assert digest(newest(last).arrays) == expected
    assert checkpoint.load(last.home.state).progress["finished"]


@pytest.mark.parametrize("wanted", ["zero_expert=true", "zero_expert=false"])
def test_an_interrupted_local_phase_begins_anew_behind_another_end_of_the_training(ready, tmp_path, wanted):
    add_local(tmp_path)
    home, other = Home(ready), {"zero_expert=true": "zero_expert=false", "zero_expert=false": "zero_expert=true"}[wanted]
    home.state.mkdir(exist_ok=True)
    cut = open_training(home, resolve(home, home.settings(), lines=["threads=1", other]))
    cut.begin(STEPS, False)
    for _ in cut.steps():
        if cut.local is not None and cut.local.steps == 2:
            break
    cut.save()
    last = open_training(home, resolve(home, home.settings(), lines=["threads=1", wanted]))
    last.begin(None, True)
    for _ in last.steps():
        pass
    assert last.local.is_done
    last.end()
    assert newest(last).layout.zero_expert == (wanted == "zero_expert=true")


def test_a_training_that_finds_nothing_better_still_learns_what_is_local(opened, tmp_path):
    run = opened()
    train(run, resume=False)
    before = newest(run)
    add_local(tmp_path)
    again = opened()
    again.begin(STEPS, None)
    for _ in again.trainer.run():
        pass
    again.trainer.best_loss, again.trainer.best = again.trainer.first_loss, before.arrays
    for _ in again.steps():
        pass
    assert again.end() == 2
    after = newest(again)
    assert digest(after.shared) == digest(before.arrays)
    assert after.layout == before.layout
    assert digest(after.arrays) != digest(before.arrays)


def test_adapters_that_were_damaged_beside_what_local_text_shaped_are_refused(opened, tmp_path):
    add_local(tmp_path)
    run = opened()
    train(run, resume=False)
    (run.home.adapters / "0001" / "shared.tensors").unlink()
    with pytest.raises(ComigsError, match="train --fresh"):
        newest(run)


def make_texts(tmp_path):
    rng = random.Random(3)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(say(rng, 60))
    return [tmp_path / f"{number}.txt" for number in range(40)]


def facts(kept):
    with kept._open() as db:
        query = "select sha256, split, left_out, seen from document join source on source.id = source where not local order by 1"
        return db.execute(query).fetchall()


def test_no_local_file_changes_in_which_split_shared_text_is_or_whether_it_is_used(tmp_path):
    files = make_texts(tmp_path)
    plain, mixed = Corpus(tmp_path / "plain.db"), Corpus(tmp_path / "mixed.db")
    (tmp_path / "near.txt").write_text(files[0].read_text() + " and so on")
    (tmp_path / "all.txt").write_text("\n\n".join(file.read_text() for file in files))
    plain.add(documents.read(files))
    mixed.add(documents.read([tmp_path / "near.txt", tmp_path / "all.txt"]), manner=Manner(local=True))
    mixed.add(documents.read(files))
    assert facts(mixed) == facts(plain)
    assert [*mixed.read("training", local=False)] == [*plain.read("training")]
    assert mixed.learned_runs("validation", local=False).tolist() == plain.learned_runs("validation").tolist()
    mixed.remove(*(each["id"] for each in mixed.sources() if each["local"]))
    plain.add(documents.read(files))
    mixed.add(documents.read(files))
    assert facts(mixed) == facts(plain)


def test_a_file_stays_local_when_it_is_read_again_and_a_new_one_is_as_its_folder(tmp_path):
    folder = tmp_path / "diary"
    folder.mkdir()
    (folder / "a.txt").write_text(say(random.Random(1), 60))
    kept = Corpus(tmp_path / "documents.db")
    kept.add(documents.read([folder]), [folder], manner=Manner(local=True))
    (folder / "a.txt").write_text((folder / "a.txt").read_text() + " and more of it")
    (folder / "b.txt").write_text(say(random.Random(2), 60))
    kept.add(documents.read([folder]), [folder])
    assert [each["local"] for each in kept.sources()] == [1, 1]


def test_a_file_that_becomes_local_is_said_to_have_been_shared(run, ready, tmp_path):
    shown = run("data", "add", "--local", tmp_path / "text").output
    assert "were shared until now" in shown
    (tmp_path / "diary.txt").write_text(DIARY)
    assert "were shared until now" not in run("data", "add", "--local", tmp_path / "diary.txt").output
    assert "local" in run("data", "list").output
    assert "local: the generalist learns nothing of these" in run("status").output


def test_few_local_documents_are_all_learned(tmp_path):
    kept = Corpus(tmp_path / "documents.db")
    kept.add(documents.read(make_texts(tmp_path)))
    (tmp_path / "diary.txt").write_text(DIARY[:400])
    kept.add(documents.read([tmp_path / "diary.txt"]), manner=Manner(local=True))
    assert kept.sizes(local=True)["training"]["documents"] == 1
