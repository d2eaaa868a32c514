"""The plan follows memory, text and measured rates; what is asked for goes first; what does not fit is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import profiles
from profiles.cost import Plan, Rates, Sizes, cache_bytes, peak_memory, step_seconds
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
    assert step_seconds(SMOLLM2, plan, Rates(products={"float32": 1.0}, threads=1)) * 0.73 == pytest.approx(expected, rel=1e-6)


def test_the_dequantised_base_is_four_or_two_bytes_a_weight():
    lean = replace(PLAN, keep=False)
    kept = peak_memory(SMOLLM2, PLAN) - peak_memory(SMOLLM2, lean)
    assert kept > 4 * (SMOLLM2.weights - SMOLLM2.block_weights) - 300_000_000


ROOT = Path(__file__).parent.parent.parent
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "memory-model-smollm2.json").read_text())["rows"]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row["setting"])
def test_the_memory_that_is_predicted_is_near_what_the_system_measured(row):
    lines = row["lines"] | {"keep": row["lines"]["keep"] == "true"}
    assert peak_memory(SMOLLM2, replace(PLAN, **lines)) == pytest.approx(row["measured"], rel=0.12)


def test_each_part_of_the_memory_by_hand():
    """Without what the process and the allocator take."""
    spare = profiles.RULES["memory"]["spare"]

    def more(one, other, sizes=SMOLLM2):
        return (peak_memory(sizes, replace(PLAN, **one)) - peak_memory(sizes, replace(PLAN, **other))) / spare

    tokens, width, hidden = 30 * 64, 576, 1536
    assert more({"checkpointing": "attention"}, {}) == pytest.approx(tokens * 2 * hidden * 4, rel=1e-6)  # gate and up
    # The residual stream twelve times and eight in their type; queries, keys, values, and the attention's weights.
    attention = tokens * (width * 20 + 4 * (576 + 2 * 192 + 9 * 64))
    assert more({"checkpointing": "none"}, {"checkpointing": "attention"}) == pytest.approx(attention, rel=1e-6)
    # One weight more of an expert: itself, its gradient, two moments, the best state so far.
    assert more({"specialists": 2}, {}) == pytest.approx(SMOLLM2.expert_weights * 20, rel=1e-6)
    assert more({"specialists": 2, "blocks": 10}, {"blocks": 10}) == pytest.approx(SMOLLM2.expert_weights * 20 / 3, rel=1e-6)
    # Two bytes a weight less in bfloat16, and a quarter of what a block has at once; the 16 MB of logits are 24 MB there.
    piece = profiles.RULES["memory"]["piece"] * (width + hidden / 4)
    halves = 2 * SMOLLM2.weights + 64 * piece - 8 * 2**20
    assert more({}, {"precision": "bfloat16"}) == pytest.approx(halves, rel=1e-6)
    assert more({"batch": 2}, {}) == pytest.approx(64 * (30 * width * 4 + 4 * piece + 4 * width * 4), rel=1e-6)
    untied = replace(SMOLLM2, is_tied=False)
    assert more({}, {"keep": False}, untied) - more({}, {"keep": False}) == pytest.approx(49152 * 576 * 4, rel=1e-6)
    assert peak_memory(replace(SMOLLM2, vocab_size=49152 + 1000), replace(PLAN, keep=False)) - peak_memory(
        SMOLLM2, replace(PLAN, keep=False)
    ) == pytest.approx(1000 * 90, rel=1e-6)
    # Pieces of 512 tokens, so twice the rows cost the residual stream of every block and four more of the whole batch.
    rows = more({"batch": 16}, {"batch": 8})
    assert rows == pytest.approx(30 * 512 * width * 4 + 4 * 512 * width * 4, rel=0.01)


def test_each_part_of_a_steps_time_by_hand():
    rates = Rates(products={"float32": 1e30}, threads=1)  # products cost nothing
    half = Rates(products={"float32": 1.0}, threads=1)
    rules, tokens = profiles.RULES["time"], 64

    def seconds(rates=rates, **changes):
        return step_seconds(SMOLLM2, replace(PLAN, **changes), rates)

    passes = rules["pass_seconds"] * tokens * (1536 + 3 * 576)
    assert seconds(checkpointing="none") == pytest.approx(30 * passes)
    assert seconds(checkpointing="none", threads=4) == pytest.approx(30 * passes / 4)
    assert seconds(checkpointing="none", blocks=10) == pytest.approx((10 + 0.33 * 20) * passes)
    assert seconds(checkpointing="none", blocks=10, cached=1.0) == pytest.approx(10 * passes)
    weights = 2 * SMOLLM2.num_blocks * SMOLLM2.block_weights + 49152 * 576  # each is made twice, the output matrix once
    assert seconds(keep=False) - seconds() == pytest.approx(weights / rules["dequantise"])
    assert seconds(keep=False, threads=2) - seconds(threads=2) == pytest.approx(weights / rules["dequantise"] / 2)
    per_block = SMOLLM2.block_weights
    products = {
        name: seconds(half, checkpointing=name, threads=10**12) * rules["efficiency"] / tokens
        for name in ("none", "attention", "block")
    }
    assert products["attention"] - products["none"] == pytest.approx(rules["attention"] * 30 * 2 * (per_block - 3 * 576 * 1536))
    assert products["block"] - products["none"] == pytest.approx(30 * 2 * (per_block - 576 * 1536))
    below = seconds(half, checkpointing="none", blocks=10, threads=10**12) * rules["efficiency"] / tokens
    assert products["none"] - below == pytest.approx(20 * (4 - 2 * rules["forward"]) * per_block)  # forward alone
    one = seconds(half, checkpointing="none", threads=1, blocks=10, cached=1.0) - 10 * passes
    two = seconds(half, checkpointing="none", threads=2, blocks=10, cached=1.0) - 10 * passes / 2
    assert two == pytest.approx(one * rules["alone"])  # one thread waits for no other
    graphics = replace(half, products={"bfloat16": 1.0}, device="cuda", gpu_memory=1)
    slower = [seconds(each, precision="bfloat16", threads=10**12) for each in (replace(graphics, device="cpu"), graphics)]
    assert slower[0] * rules["half"] == pytest.approx(slower[1])


def test_the_outputs_of_blocks_without_experts_take_two_bytes_a_number_and_a_factor():
    assert cache_bytes(SMOLLM2, 1000) == 1000 * (2 * 576 + 4)


def test_a_cache_is_used_where_the_disk_holds_it_and_counts_for_the_tokens_that_come_again():
    def cached(disk, steps=10_000):
        return make(
            profiles.load("auto"), SMOLLM2, RATES, {"blocks": 10, "batch": 8, "context": 100}, memory=24 * GB, free=20 * GB,
            tokens=100_000, disk=disk, steps=steps,
        )  # fmt: skip

    size = cache_bytes(SMOLLM2, 130_000)  # validation text comes on top
    assert [cached(disk).cache for disk in (size, size - 1)] == [True, False]
    assert cached(size).cached == pytest.approx(1 - 130_000 / (10_000 * 800))
    assert cached(size, steps=100).cached == 0.0  # nothing comes twice
    assert not planned().cache


def test_of_a_gpu_seven_tenths_may_be_used_and_of_a_base_no_more_context_than_it_knows():
    rates = Rates(products={"float32": 1e13}, threads=2, device="cuda", gpu_memory=int(1.3 * GB))
    assert planned(rates=rates).memory <= 0.7 * 1.3 * GB
    assert planned(rates=replace(rates, gpu_memory=24 * GB)).checkpointing == "none"
    with pytest.raises(profiles.ProfileError, match="may be used"):  # never with the weights in their file
        planned(rates=replace(rates, gpu_memory=int(0.8 * GB)), cuda_graph=True, batch=1, context=64)
    plan = make(profiles.load("auto"), replace(SMOLLM2, context_length=32), RATES, {}, memory=24 * GB, free=20 * GB, tokens=None)
    assert (plan.context, plan.reasons["context"]) == (32, "the base was trained with no more")
