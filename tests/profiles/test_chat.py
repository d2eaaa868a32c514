"""How llama.cpp is run at chat: figures worked by hand, less memory, busy cores, what was asked for."""

from dataclasses import replace

import pytest

from profiles import RULES, ProfileError
from profiles.chat import GPU, Subject, choose_layers, make, peak_memory, repacked_formats

MB = 10**6
# SmolLM2's blocks and heads; 2 * 30 * 192 * 8,192 numbers of keys and values.
SUBJECT = Subject(size=98 * MB, num_blocks=30, heads=9, keys=192, head=64, ff_width=1536, context=8192, context_length=8192)


def planned(subject=SUBJECT, cores=4, busy=0.0, free=10**10, **wanted):
    return make(subject, cores=cores, busy=busy, free=free, wanted=wanted)


def test_the_cache_by_hand():
    rest = 98 * MB + RULES["chat"]["token"] * 512 * 1536 + RULES["chat"]["spare"]
    scores = RULES["chat"]["scores"] * 512 * 8192 * 9
    assert peak_memory(SUBJECT, "F16", 512) - rest - scores == pytest.approx(2 * 30 * 192 * 8192 * 2, abs=1)
    # 32 numbers and one scale of two bytes in 34 bytes
    assert peak_memory(SUBJECT, "Q8_0", 512) - rest == pytest.approx(2 * 30 * 192 * 8192 // 32 * 34, abs=1)


def test_less_memory_makes_the_batch_smaller_and_then_the_cache():
    # 16-bit keys and values of 2,048 tokens, and batches of 512: 234 MB were measured.
    assert peak_memory(replace(SUBJECT, context=2048), "F16", 512) == pytest.approx(234 * MB, rel=0.03)
    needs = [peak_memory(SUBJECT, *kind) for kind in (("F16", 512), ("F16", 128), ("Q8_0", 512), ("Q8_0", 128))]
    free = [need / RULES["memory"]["share"] + 1 for need in needs]
    plans = [planned(free=int(each)) for each in (10**10, free[1], free[3])]
    assert [(plan.cache, plan.batch) for plan in plans] == [("F16", 512), ("F16", 128), ("Q8_0", 128)]
    assert all(plan.memory <= 0.85 * each for plan, each in zip(plans, (10**10, free[1], free[3]), strict=True))
    assert "F16 would not fit" in plans[-1].reasons["cache"]


def test_what_does_not_fit_is_refused_with_a_context_that_would():
    with pytest.raises(ProfileError, match=r"context of 8,192 tokens takes .* set context = \d+ in \[chat\]"):
        planned(free=220 * MB)
    with pytest.raises(ProfileError, match="take a smaller base"):
        planned(free=50 * MB)


def test_cores_that_others_keep_busy_are_left_to_them():
    assert [planned(busy=busy).threads for busy in (0.0, 0.4, 1.2, 9.0)] == [4, 4, 3, 1]
    assert "keep 1.2 of 4 cores busy" in planned(busy=1.2).reasons["threads"]


def test_slow_cores_are_left_alone_and_said():
    assert "the fast cores; 4 slow ones" in make(SUBJECT, cores=4, slow=4, busy=0.0, free=10**10, wanted={}).reasons["threads"]
    assert planned().reasons["threads"] == "every core"


def test_weights_that_llama_cpp_copies_are_counted_twice_and_said():
    copying = replace(SUBJECT, repacked=70 * MB)
    assert peak_memory(copying, "F16", 512) - peak_memory(SUBJECT, "F16", 512) == 70 * MB
    assert "70 MB are copied" in planned(copying).reasons["mmap"]
    assert "nothing is copied" in planned().reasons["mmap"]


@pytest.mark.parametrize(
    ("features", "some", "none"),
    [
        (("avx2",), {"Q4_0", "Q4_K", "IQ4_NL"}, {"Q8_0", "Q4_1", "Q6_K", "Q2_K"}),
        (("avx2", "avx512"), {"Q4_0", "Q2_K"}, {"Q8_0"}),
        (("avx2", "avx512", "amx"), set(), {"Q4_0", "Q2_K"}),
        (("neon", "dotprod"), {"Q4_0", "Q4_K", "Q6_K", "Q8_0"}, {"Q4_1", "F16"}),
        (("neon",), set(), {"Q4_0", "Q8_0"}),
    ],
)
def test_which_formats_are_copied_follows_from_the_processor(features, some, none):
    found = repacked_formats(features)
    assert some <= found
    assert not none & found


def test_what_is_asked_for_goes_first():
    plan = planned(busy=3.0, threads=4, mmap=False, cache="Q8_0", batch=64)
    assert (plan.threads, plan.mmap, plan.cache, plan.batch) == (4, False, "Q8_0", 64)
    assert {plan.reasons[name] for name in ("threads", "mmap", "cache", "batch")} == {"as asked for"}


def test_heads_that_are_no_whole_blocks_keep_their_cache_in_f16():
    with pytest.raises(ProfileError):
        planned(replace(SUBJECT, head=48), free=int(peak_memory(SUBJECT, "Q8_0", 128) / 0.85 + 1))


def test_a_chat_has_no_more_context_than_its_base_was_trained_with():
    plan = planned(replace(SUBJECT, context_length=2048))
    assert (plan.context, plan.reasons["context"]) == (2048, "the base was trained with no more")
    assert plan.memory == planned(replace(SUBJECT, context=2048)).memory


ORIN = GPU(name="Orin", free=3 * 10**9, is_shared=True)


def card(free):
    return GPU(name="GeForce RTX 3060", free=free, is_shared=False)


def test_a_gpu_that_shares_the_memory_takes_every_layer_and_no_memory_more():
    plan, alone = make(SUBJECT, cores=4, busy=0, free=10**10, wanted={}, gpu=ORIN), planned()
    assert (plan.gpu_layers, plan.memory) == (31, alone.memory)  # 30 blocks, and the output
    assert plan.reasons["gpu_layers"] == "all: the memory of Orin is the device's own"
    with pytest.raises(ProfileError, match="end other programs"):
        make(SUBJECT, cores=4, busy=0, free=50 * MB, wanted={}, gpu=ORIN)


def test_layers_that_fit_in_a_cards_own_memory_by_hand():
    # 98 MB of weights and 188,743,680 bytes of keys and values in 31 layers: 9,249,796 bytes each.
    work = 512 * (RULES["chat"]["token"] * 1536 + RULES["chat"]["scores"] * 9 * 8192) + RULES["chat"]["spare"]
    for count in (0, 1, 7, 31):
        free = int((work + (count + 0.5) * 9_249_796) / RULES["gpu"]["share"])
        layers, reason = choose_layers(SUBJECT, "F16", 512, card(free))
        assert layers == count
        assert reason.startswith("all fit" if count == 31 else "no more of 31 fit")
    assert choose_layers(SUBJECT, "F16", 512, card(0))[0] == 0


def test_what_lies_on_a_card_takes_no_memory_of_the_device():
    plan = make(SUBJECT, cores=4, busy=0, free=10**10, wanted={}, gpu=card(10**10))
    assert plan.gpu_layers == 31
    assert plan.memory == pytest.approx(planned().memory - 98 * MB - 188_743_680, abs=1)
    tight = planned().memory - 100 * MB  # the processor alone would have to take less
    assert make(SUBJECT, cores=4, busy=0, free=int(tight / 0.85), wanted={}, gpu=card(10**10)).cache == "F16"


def test_layers_that_are_asked_for_go_first_and_none_turn_the_gpu_off():
    for wanted, count in ((0, 0), (5, 5), (99, 31)):
        plan = make(SUBJECT, cores=4, busy=0, free=10**10, wanted={"gpu_layers": wanted}, gpu=ORIN)
        assert (plan.gpu_layers, plan.reasons["gpu_layers"]) == (count, "as asked for")
    assert planned(gpu_layers=0).gpu_layers == 0
    with pytest.raises(ProfileError, match="gpu_layers = 5 is asked for and there is no GPU that"):
        planned(gpu_layers=5)


def test_without_a_gpu_the_reason_says_what_is_missing():
    assert (planned().gpu_layers, planned().reasons["gpu_layers"]) == (0, "no GPU that llama.cpp can use")
    plan = make(SUBJECT, cores=4, busy=0, free=10**10, wanted={}, lacking="a llama.cpp without CUDA")
    assert plan.reasons["gpu_layers"] == "a llama.cpp without CUDA"
