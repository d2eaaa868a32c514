"""The bi-level loop keeps its two levels apart, learns, and resumes bit for bit."""

import json
import math
from dataclasses import replace

import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig, is_router
from comigs_edge.nn.loss import next_token_loss
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from comigs_edge.training.batches import Rows
from comigs_edge.training.pace import Pace, seconds_left, steps_that_fit
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.trainer import Trainer

PRODUCT = {"optimiser": "muon", "rates_by_weight": True, "router_offset_rate": 0.1}  # what a new home has, and the paper has not


def rows(seed, tokens=3000):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (tokens,), generator=generator).tolist()
    return Rows([Encoded(ids, [True] * tokens)], 32, 0)


def schedule(**changes):
    values = {
        "steps": 8,
        "batch": 2,
        "expert_learning_rate": 1e-2,
        "final_learning_rate": 1e-3,
        "router_learning_rate": 1e-2,
        "warmup_steps": 0,
        "router_period": 3,
        "router_steps": 2,
        "balance_weight": 0.01,
        "weight_decay": 0.01,
        "validation_rows": 4,
    }
    return Schedule(**(values | changes))


@pytest.fixture(params=["lora", "parallel", "lora Q4_0", "parallel Q4_0"])
def trainer(tiny_base, request):
    """Both forms of expert, and both with fake quantisation from the middle of the training."""
    form, _, name = request.param.partition(" ")

    def make(specialists=1, seed=0, **changes):
        changes = ({"block_format": name, "quantise_start": 0.5} if name else {}) | changes
        layout = ExpertsConfig(specialists, 4, 8.0, min(2, 1 + specialists), form=form, expert_width=32 * (form == "parallel"))
        adapters = Adapters.initial(layout, tiny_base.hparams, seed)
        return Trainer(Model(tiny_base, adapters), rows(1), rows(2), schedule(**changes))

    return make


def test_each_phase_leaves_the_other_group_without_any_gradient(trainer):
    one = trainer(specialists=2)
    seen = set()
    before = {name: tensor.clone() for name, tensor in one.adapters.named.items()}
    for event in one.run():
        seen.add(event.phase)
        for name, tensor in one.adapters.named.items():
            is_router = name.startswith("router.")
            if is_router == (event.phase == "router"):
                assert tensor.grad is not None
            else:
                assert tensor.grad is None
                assert torch.equal(tensor.detach(), before[name])
            before[name] = tensor.detach().clone()
    assert seen == {"expert", "router"}


def test_router_steps_follow_every_period_and_the_end(trainer):
    phases = "".join(event.phase[0] for event in trainer().run())
    assert phases == "eeerreeerreerr"


def test_the_generalist_alone_has_no_router_and_no_router_steps(trainer):
    events = list(trainer(specialists=0).run())
    assert [event.phase for event in events] == ["expert"] * 8


def test_a_run_until_a_step_ends_after_the_routers_turn_and_goes_on_from_there(trainer):
    straight, parts = trainer(), trainer()
    for _ in straight.run():
        pass
    seen = ["".join(event.phase[0] for event in parts.run(until)) for until in (2, 3, 3, 7, None)]
    assert seen == ["ee", "err", "", "eeerre", "err"]
    assert digest(parts.adapters.arrays()) == digest(straight.adapters.arrays())


def test_joint_training_moves_both_groups_by_the_gradients_of_one_training_batch(trainer):
    one = trainer(jointly=True)
    assert one.total_steps == 8
    events = list(one.run())
    assert [event.phase for event in events] == ["expert"] * 8
    assert (one.router_steps, len(one.router.state)) == (0, 2)
    assert all(tensor.grad is not None for tensor in one.adapters.named.values())
    assert [trainer(specialists=0, jointly=True).step().phase] == ["expert"]


@pytest.mark.parametrize(("tokens", "measured"), [(3000, 4), (200, 3), (60, 1), (20, 1)])
def test_the_router_never_learns_from_the_rows_that_the_validation_loss_is_taken_on(tiny_base, tokens, measured):
    adapters = Adapters.initial(ExpertsConfig(1, 4, 8.0, 2), tiny_base.hparams, 0)
    validation = rows(2, tokens)
    one = Trainer(Model(tiny_base, adapters), rows(1), validation, schedule())
    on = {place for batch in validation.first(one.validation.measured_rows, 2) for place in batch.places}
    off = {place for number in range(len(validation)) for place in one.router_rows.batch(number, 1).places}
    assert one.validation.measured_rows == len(on) == measured
    assert off == (set(range(len(validation))) - on if len(validation) > 1 else on)


def test_without_a_router_all_validation_rows_may_be_measured(trainer):
    assert trainer(specialists=0, validation_rows=1000).validation.measured_rows == len(rows(2))
    assert trainer(jointly=True, validation_rows=1000).validation.measured_rows == len(rows(2))
    assert trainer(validation_rows=1000).validation.measured_rows == len(rows(2)) // 2


def test_the_router_learns_from_other_rows_if_there_are_some(trainer):
    one, other = trainer(), trainer()
    other.router_rows = rows(3)
    seen = []
    for each in (one, other):
        for event in each.run(3):
            if event.phase == "router":
                seen.append(event.loss)
                break
    batch = other.router_rows.batch(0, 2)
    assert seen[0] != seen[1]
    assert not torch.equal(batch.tokens, one.validation.rows.batch(0, 2).tokens)


def test_training_lowers_the_loss_and_keeps_the_best_state(trainer):
    one = trainer(steps=30)
    losses = [event.validation_loss for event in one.run() if event.validation_loss is not None]
    assert one.best_loss == min(losses) < one.first_loss - 0.3
    one.adapters.load_arrays(one.best)
    assert one.validate() == one.best_loss


def script(monkeypatch, *losses):
    """Validations give these losses; returns the states that they were taken on."""
    losses, states = iter(losses), []

    def validate(self, **options):
        states.append(self.adapters.arrays())
        return next(losses)

    monkeypatch.setattr(Trainer, "validate", validate)
    return states


def test_a_later_state_that_is_worse_replaces_nothing(trainer, monkeypatch):
    one, states = trainer(steps=7), script(monkeypatch, 9.0, 3.0, 1.0, 2.0)
    losses = [event.validation_loss for event in one.run() if event.validation_loss is not None]
    assert losses == [3.0, 1.0, 2.0]  # after 3, 6 and, at the end, 7 steps
    assert (one.first_loss, one.best_loss, one.last_loss) == (9.0, 1.0, 2.0)
    assert digest(one.best) == digest(states[2]) != digest(one.adapters.arrays())


def test_the_best_state_survives_an_interruption(trainer, monkeypatch):
    one, other = trainer(steps=7), trainer(steps=7, seed=1)
    states = script(monkeypatch, 9.0, 1.0, 2.0, 3.0)
    for _ in one.run(6):  # the last state that is saved is a worse one
        pass
    arrays, progress = one.state()
    other.restore({name: array.copy() for name, array in arrays.items()}, progress)
    for _ in other.run():
        pass
    assert (other.first_loss, other.best_loss, other.last_loss) == (9.0, 1.0, 3.0)
    assert digest(other.best) == digest(states[1])


# The second bad period in a row is the one after 21 steps; a constant rate falls over a fifth of those.
@pytest.mark.parametrize(("course", "steps", "best"), [("cosine", 21, 1.0), ("wsd", 26, 0.5)])
def test_a_training_ends_when_its_patience_is_over_and_never_before(trainer, monkeypatch, course, steps, best):
    one = trainer(steps=300, patience=2, schedule=course)
    script(monkeypatch, 9.0, 3.0, 4.0, 2.0, 5.0, 1.0, 2.0, 2.0, 3.0, 0.5, *[4.0] * 20)
    if course == "cosine" and one.schedule.block_format is not None and one.schedule.quantise_start > 0:
        # None of the 21 steps was in the file's weights: those come behind them, as many as their share says.
        steps, best = math.floor(21 / one.schedule.quantise_start), 0.5
    events = list(one.run())
    assert (one.expert_steps, one.router_steps) == (steps, 2 * math.ceil(steps / 3))
    assert one.best_loss == best
    assert one.is_done
    assert events[-1].validation_loss == one.last_loss


def test_a_training_whose_end_is_decided_is_resumed_bit_for_bit(trainer):
    def make(seed=0):
        return trainer(seed=seed, steps=120, patience=2, schedule="wsd", expert_learning_rate=1.0)

    straight = make()
    for _ in straight.run():
        pass
    assert straight.schedule.decay_from is not None
    for stop in (straight.schedule.decay_from - 1, straight.schedule.decay_from + 1):
        part, resumed = make(), make(seed=5)
        for _ in part.run(stop):
            pass
        arrays, progress = part.state()
        resumed.schedule = Schedule(**json.loads(json.dumps(progress["schedule"])))
        resumed.restore({name: array.copy() for name, array in arrays.items()}, progress)
        for _ in resumed.run():
            pass
        assert resumed.schedule == straight.schedule
        assert digest(resumed.adapters.arrays()) == digest(straight.adapters.arrays())


def test_the_validation_loss_is_a_mean_over_the_tokens_that_count(trainer, tiny_base):
    one = trainer()
    ids = torch.randint(3, 60, (400,), generator=torch.Generator().manual_seed(5)).tolist()
    batches = Rows([Encoded(ids, [place % 3 == 0 for place in range(400)])], 32, 0).first(4, 2)
    total, count = 0.0, 0
    for batch in batches:
        logits = one.model.logits(one.model(batch.tokens, batch.documents).hidden).detach().flatten(0, -2)
        total += torch.nn.functional.cross_entropy(logits[batch.scored], batch.targets[batch.scored], reduction="sum")
        count += int(batch.scored.sum())
    assert one.validation.mean_loss(batches, as_stored=False) == pytest.approx(float(total / count), rel=1e-5)


def test_no_more_rows_are_measured_than_the_router_has_not_seen(trainer):
    one = trainer()
    assert one.validate(rows=1000) == one.validate()


def test_a_frozen_expert_tensor_stays_as_it_is(trainer):
    one = trainer()
    one.frozen = {name for name in one.adapters.named if name.startswith("generalist.")}
    before = one.adapters.arrays()
    for _ in range(4):
        one.step()
    for name, array in one.adapters.arrays().items():
        if name in one.frozen:
            assert (array == before[name]).all()
    assert digest(one.adapters.arrays()) != digest(before)


def test_the_balance_loss_is_added_to_the_loss_of_the_router(tiny_base, make_adapters):
    plan = schedule(balance_weight=0.5, router_period=1)
    one = Trainer(Model(tiny_base, make_adapters(specialists=2)), rows(1), rows(2), plan)
    one.step()
    batch, routers = one.router_rows.batch(0, plan.batch), one.adapters.group(router=True)
    for router in routers:
        router.requires_grad_()
        router.grad = None
    out = one.model(batch.tokens, batch.documents, with_balance=True)
    loss = next_token_loss(tiny_base, out.hidden, batch.targets, batch.scored) / batch.num_scored
    (loss + 0.5 * out.balance).backward()
    wanted = [router.grad.clone() for router in routers]
    one.step()
    for router, gradient in zip(routers, wanted, strict=True):
        torch.testing.assert_close(router.grad, gradient)


def test_every_expert_step_has_the_rate_of_the_cosine(trainer):
    one = trainer()
    for event in one.run():
        if event.phase == "expert":
            cosine = 1e-3 + 9e-3 * (1 + math.cos(math.pi * (event.expert_steps - 1) / 8)) / 2
            assert one.experts.learning_rate == pytest.approx(cosine)


def test_steps_that_fit_by_hand():
    plan, pace = schedule(router_period=30, router_steps=10), Pace(step=8, quantised_step=16, validation=10)
    # 30 steps: 30 + 10 router steps of 8 s, two validations of 10 s = 340 s; 31 need 10 router steps and a validation more.
    assert steps_that_fit(360, pace, plan, has_router=True) == 30
    assert steps_that_fit(339, pace, plan, has_router=True) == 29
    assert steps_that_fit(360, pace, plan, has_router=False) == 41  # 41 * 8 + 3 * 10 = 358
    assert steps_that_fit(108, pace, plan, has_router=True) == 1  # one step and 10 router steps of 8 s, two validations
    assert steps_that_fit(107, pace, plan, has_router=True) == 0
    # Of 60 steps 30 with their 10 router steps are done: 40 steps of 8 s and one validation are left, 330 s.
    assert steps_that_fit(330, pace, plan, has_router=True, done=(30, 10)) == 60
    assert steps_that_fit(329, pace, plan, has_router=True, done=(30, 10)) == 59
    quantised = schedule(router_period=30, router_steps=10, block_format="Q4_0", quantise_start=0.5)
    # 20 steps: 10 * 8 + 10 * 16 = 240, as much again by half for the 10 router steps, two validations: 380.
    assert steps_that_fit(380, pace, quantised, has_router=True) == 20
    assert steps_that_fit(379, pace, quantised, has_router=True) == 19
    closing = schedule(router_period=30, router_steps=10, closing_steps=60)
    # 30 steps: 340 s as above, 10 closing steps of 8 s, a validation more, and 64 rows forwards, 2 at once: 85.3 s.
    assert steps_that_fit(516, pace, closing, has_router=True) == 30
    assert steps_that_fit(515, pace, closing, has_router=True) == 29
    # All steps were done and 4 of the closing phase: 6 of 8 s are left, and a validation.
    assert seconds_left(pace, replace(closing, steps=30), True, (30, 10), closed=4) == 6 * 8 + 10
    assert seconds_left(pace, replace(closing, steps=30), True, (30, 10), closed=10) == 0
    assert seconds_left(pace, replace(closing, steps=30), True, (30, 8), closed=0) == pytest.approx(12 * 8 + 10 + 256 / 3)
    # 31 steps end within a second period: 10 router steps and its validation are due, then all is over.
    assert seconds_left(pace, replace(closing, steps=31), True, (31, 10), closed=0) == pytest.approx(20 * 8 + 20 + 256 / 3)
    assert seconds_left(pace, replace(closing, steps=31), True, (31, 20), closed=10) == 0
    # A training that goes on ends with two validations more.
    assert steps_that_fit(360, pace, plan.slow(), has_router=True) == 30
    assert steps_that_fit(359, pace, plan.slow(), has_router=True) == 29
    assert seconds_left(pace, replace(plan.slow(), steps=30), True, (20, 0)) == 20 * 8 + 3 * 10
    assert seconds_left(pace, replace(plan.slow(), steps=30), True, (30, 10)) == 0


@pytest.mark.parametrize("changes", [{}, {"optimiser": "muon"}, PRODUCT], ids=["adamw", "muon", "product"])
def test_a_restored_trainer_ends_with_the_same_bits(trainer, changes):
    straight = trainer(**changes)
    for _ in straight.run():
        pass
    for steps in ((4, 2), (6, 3)):  # among expert steps, and among the router's
        interrupted = trainer(**changes)
        for event in interrupted.run():
            if (event.expert_steps, event.router_steps) == steps:
                break
        arrays, progress = interrupted.state()
        resumed = trainer(seed=5, **changes)  # another start, all of which the state replaces
        resumed.restore(arrays, progress)
        for _ in resumed.run():
            pass
        assert digest(resumed.adapters.arrays()) == digest(straight.adapters.arrays())
        assert digest(resumed.best) == digest(straight.best)
        assert resumed.best_loss == straight.best_loss


def test_a_loss_that_is_not_finite_is_a_sentence(trainer):
    one = trainer()
    next(iter(one.adapters.named.values())).fill_(math.nan)
    with pytest.raises(Exception, match=r"the loss became nan.*expert_learning_rate"):
        one.step()


def test_a_deferred_loss_is_the_same_and_never_saved_when_it_is_not_finite(trainer):
    """As on a GPU, where to look at the loss of this step would make the processor wait."""
    now, late = trainer(), trainer()
    late.defers_loss = True
    losses = [[event.loss for event in one.run()] for one in (now, late)]
    assert losses[1] == losses[0][:1] + losses[0][:-1]
    assert digest(now.adapters.arrays()) == digest(late.adapters.arrays())
    late = trainer()
    late.defers_loss = True
    late.step()
    next(iter(late.adapters.named.values())).detach().fill_(math.nan)
    late.step()  # nobody has looked yet
    with pytest.raises(Exception, match=r"the loss became nan"):
        late.state()


def test_a_new_specialist_leaves_the_start_of_the_others_as_it_was(tiny_base):
    one, three = (Adapters.initial(ExpertsConfig(n, 4, 8.0, 2), tiny_base.hparams, 7).named for n in (1, 3))
    for name in one:
        if not name.startswith("router."):
            assert torch.equal(one[name], three[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("specialists", [1, 3])
@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_a_step_on_a_gpu_is_the_step_on_the_processor(tiny_path, form, specialists):
    found = []
    for device in ("cpu", "cuda"):
        base = open_base(tiny_path, device=device)
        layout = ExpertsConfig(specialists, 4, 8.0, 2, form=form, expert_width=32 * (form == "parallel"))
        adapters = Adapters.initial(layout, base.hparams, 0).to(base.device)
        one = Trainer(Model(base, adapters, checkpointing="none"), rows(1), rows(2), schedule())
        one.defers_loss = True  # on both
        losses = [event.loss for event in one.run()]
        found.append((losses, one.adapters.arrays()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3)
    for name, array in found[0][1].items():
        assert abs(array - found[1][1][name]).max() < 1e-2, name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # its own word on itself
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_no_step_on_a_gpu_makes_the_processor_wait(tiny_path, form):
    base = open_base(tiny_path, device="cuda", dtype=torch.bfloat16)
    layout = ExpertsConfig(3, 4, 8.0, 2, form=form, expert_width=32 * (form == "parallel"))
    adapters = Adapters.initial(layout, base.hparams, 0).to(base.device)
    one = Trainer(Model(base, adapters, checkpointing="none"), rows(1), rows(2), schedule(router_period=100))
    one.step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        model, batch = one.model, one.training.batch(1, 2).to(base.device)
        hidden = model(batch.tokens, batch.documents, with_balance=True).hidden
        next_token_loss(base, hidden, batch.targets, batch.scored).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_plan_takes_the_gpu_and_trains_on_it(ready, run):
    plan = json.loads(run("plan", "--json").stdout)["plan"]
    assert plan["device"] == "cuda"
    trained = json.loads(run("train", "--steps", "12", "--json").stdout)
    assert trained["validation_loss"] < trained["validation_loss_before"]


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_an_expert_learns_in_proportion_to_its_weight_on_the_validation_text(tiny_base, form):
    """AdamW's first step of a tensor is its rate in size, whatever the gradient, but for the decay."""
    layout = ExpertsConfig(1, 4, 8.0, 2, form=form, expert_width=32 * (form == "parallel"), attention=True)
    plan = schedule(rates_by_weight=True, weight_decay=0.0, final_learning_rate=1e-2)
    one = Trainer(Model(tiny_base, Adapters.initial(layout, tiny_base.hparams, 0)), rows(1), rows(2), plan)
    one.scores = [[0.9, 0.1], [0.25, 0.75]]
    before = one.adapters.arrays()
    one.step()
    for name, array in one.adapters.arrays().items():
        step = abs(array - before[name]).max()
        if is_router(name) or not step:  # a zero factor of a product gives the other one no gradient yet
            continue
        block = int(name.split(".blk.")[1].split(".")[0])
        expert = 0 if name.startswith("generalist.") else 1
        factor = 1.0 if ".attn_" in name else 2 * one.scores[block][expert]
        assert step == pytest.approx(1e-2 * factor, rel=0.02)


def test_scores_are_of_validation_rows_and_survive_a_restart_with_the_offsets(trainer):
    one = trainer(rates_by_weight=True, router_offset_rate=0.1)
    assert one.scores is None
    for _ in range(5):
        one.step()
    rows_of_one = one.scores[0]
    assert len(one.scores) == one.adapters.hparams.num_blocks
    assert sum(rows_of_one) == pytest.approx(1)
    arrays, progress = one.state()
    other = trainer(seed=1, rates_by_weight=True, router_offset_rate=0.1)
    other.restore({name: array.copy() for name, array in arrays.items()}, progress)
    assert other.scores == one.scores
    behind = []
    while not one.is_done:
        behind.append((one.step(), other.step()))
    assert "".join(event.phase[0] for event, _ in behind) == "eeerreerr"  # the router's moments count in its second turn
    assert all(event == again for event, again in behind)
    assert digest(one.adapters.arrays()) == digest(other.adapters.arrays())
