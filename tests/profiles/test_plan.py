"""The plan follows memory, text and measured rates; what is asked for goes first; what does not fit is refused."""

from dataclasses import replace

import pytest

import profiles
from profiles.cost import Plan, Rates, Sizes, peak_memory, step_seconds
from profiles.plan import make, neighbours

GB = 10**9
SMOLLM2 = Sizes(
    num_blocks=30, width=576, ff_width=1536, heads=9, queries=576, keys=192, vocab_size=49152, context_length=8192,
    is_tied=True, file_size=98_000_000, expert_weights=30 * 3 * 32 * 576,
)  # fmt: skip
RATES = Rates(products={"float32": 1e11}, threads=2)
PLAN = Plan(specialists=1, batch=1, context=64, threads=1, precision="float32", keep=True, checkpointing="block", memory=0)


def planned(free=20 * GB, memory=24 * GB, tokens=100_000, profile="auto", rates=RATES, **wanted):
    return make(profiles.load(profile), SMOLLM2, rates, wanted, memory=memory, free=free, tokens=tokens)


def test_less_memory_makes_the_plan_leaner_step_by_step():
    plans = [planned(free=free * GB) for free in (20, 1.9, 1.3, 0.75, 0.65)]
    leanness = [(plan.keep, plan.checkpointing) for plan in plans]
    assert leanness[0] == (True, "none")
    assert leanness[-1] == (False, "block")
    assert len(set(leanness)) >= 3
    assert [plan.memory for plan in plans] == sorted((plan.memory for plan in plans), reverse=True)
    for free, plan in zip((20, 1.9, 1.3, 0.75, 0.65), plans, strict=True):
        assert plan.memory <= free * GB * 0.85
    assert plans[-1].batch <= plans[0].batch


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(profiles.ProfileError, match=r"16 x 512 tokens.*are free.*would fit .*set batch and context"):
        planned(free=0.8 * GB, batch=16, context=512)
    with pytest.raises(profiles.ProfileError, match=r"end other programs, or take a smaller base"):
        planned(free=0.3 * GB)


def test_more_specialists_for_more_text_and_more_memory():
    assert [planned(tokens=tokens).specialists for tokens in (1_000, 400_000, 1_500_000)] == [1, 2, 3]
    assert [planned(tokens=2_000_000, memory=m * GB, free=m * GB).specialists for m in (1, 4, 8)] == [1, 2, 3]
    assert "a second one wants 400,000" in planned(tokens=1_000).reasons["specialists"]
    assert planned(tokens=None).specialists == 1
    assert planned(tokens=2_000_000, profile="pi4").specialists == 1


def test_what_is_asked_for_goes_first_and_says_so():
    plan = planned(batch=2, context=64, specialists=5, keep=False, checkpointing="block", threads=1, precision="float32")
    assert (plan.batch, plan.context, plan.specialists, plan.keep, plan.threads) == (2, 64, 5, False, 1)
    assert {plan.reasons[name] for name in ("batch", "context", "specialists", "threads")} == {"as asked for"}


def test_bfloat16_is_for_devices_on_which_it_was_measured_to_be_faster():
    assert planned(rates=Rates(products={"float32": 1e11, "bfloat16": 3e11}, threads=2)).precision == "bfloat16"
    assert planned(rates=Rates(products={"float32": 1e11, "bfloat16": 1.2e11}, threads=2)).precision == "float32"
    assert planned(rates=None).precision == "float32"


def test_neighbours_have_one_specialist_less_and_one_more():
    plan = planned()
    fewer, more = neighbours(plan, SMOLLM2, RATES)
    assert (fewer.specialists, more.specialists) == (plan.specialists - 1, plan.specialists + 1)
    # An expert's weights five times over, in float32, and the allocator's spare.
    assert more.memory - plan.memory == pytest.approx(SMOLLM2.expert_weights * 20, rel=0.15)
    assert [each.specialists for each in neighbours(planned(specialists=0), SMOLLM2, None)] == [1]


def test_needed_products_by_hand():
    """Four operations for each weight of the base and token, at a rate of one per second and nothing else."""
    plan = replace(PLAN, context=100, threads=10**12, checkpointing="none")
    per_block = 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    expected = 4 * 100 * (30 * per_block + 49152 * 576)
    assert step_seconds(SMOLLM2, plan, Rates(products={"float32": 1.0}, threads=1)) * 0.85 == pytest.approx(expected, rel=1e-6)


def test_the_dequantised_base_is_four_or_two_bytes_a_weight():
    lean = replace(PLAN, keep=False)
    kept = peak_memory(SMOLLM2, PLAN) - peak_memory(SMOLLM2, lean)
    assert kept > 4 * (SMOLLM2.weights - SMOLLM2.block_weights) - 300_000_000
