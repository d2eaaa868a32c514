"""Every method against a case of two parameters that is worked by hand, and against dense arithmetic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import ExpertsConfig, expected_shapes
from comigs_edge.simulate.methods import fdlora, flexlora, hetlora, pcl
from comigs_edge.simulate.methods.catalogue import CORE, METHODS, find_method
from comigs_edge.simulate.methods.method import Round
from comigs_edge.simulate.methods.ranks import match_parameters
from coordinator.protocol import rounds

A, B = "generalist.blk.0.ffn_up.lora_a", "generalist.blk.0.ffn_up.lora_b"
PLAIN = ExpertsConfig(1, 8, 16.0, 2)
PLAIN_PARALLEL = ExpertsConfig(1, 8, 16.0, 2, form="parallel", expert_width=32)


def arrays(a, b):
    return {A: np.array(a, np.float32), B: np.array(b, np.float32)}


def made_of(devices, weights=None, loss=None):
    """A round in which the devices, which began at zero, have these A and B."""
    changes = [arrays(*device) for device in devices]
    before = [{name: np.zeros_like(array) for name, array in change.items()} for change in changes]
    memories = [{} for _ in devices]
    return Round(before, changes, weights or [1] * len(devices), loss or (lambda device, arrays: 0.0), memories=memories)


def weights_of(layout, shape, router=False):
    sizes = expected_shapes(layout, shape)
    return sum(math.prod(size) for name, size in sizes.items() if router or not name.startswith("router."))


def test_the_mean_of_fedavg_is_that_of_the_changes_by_weight():
    found = Round(
        before=[arrays([[1.0]], [[2.0]])] * 2,
        changes=[arrays([[1.0]], [[3.0]]), arrays([[3.0]], [[-1.0]])],
        weights=[1, 3],
        loss=lambda device, arrays: 0.0,
    )
    for result in find_method("fedavg").exchange(found):
        # A: 1 + (1 * 1 + 3 * 3) / 4 = 3.5; B: 2 + (1 * 3 - 3 * 1) / 4 = 2
        assert (result[A], result[B]) == (3.5, 2.0)


def test_the_mean_of_products_is_exact_with_a_frozen_and_not_with_a_averaged():
    separate = find_method("fedavg").exchange(made_of([([[2.0]], [[1.0]]), ([[4.0]], [[3.0]])]))[0]
    # mean(A) mean(B) = 3 * 2 = 6, and the mean of the products is (2 + 12) / 2 = 7
    assert separate[A] * separate[B] == 6
    assert find_method("ffa-lora").averaging == "freeze-a"
    assert rounds.trained_names([A, B], "freeze-a", 1) == [B]
    # A = 2 on both: only B passes, 2 * (1 + 3) / 2 = 4 = (2 * 1 + 2 * 3) / 2
    same = arrays([[2.0]], [[0.0]])
    found = Round([same] * 2, [{B: np.float32([[1.0]])}, {B: np.float32([[3.0]])}], [1, 1], lambda *_: 0.0)
    result = find_method("ffa-lora").exchange(found)[0]
    assert (result[A], result[B]) == (2.0, 2.0)


def test_hetlora_pads_weighs_by_the_norm_of_the_product_and_cuts():
    # Products: 3 * 1 = 3 and 0.5 * 2 + 0 * 7 = 1, so the weights are 3/4 and 1/4.
    narrow, wide = ([[1.0]], [[3.0]]), ([[2.0], [7.0]], [[0.5, 0.0]])
    first, second = hetlora.exchange(made_of([narrow, wide]))
    np.testing.assert_allclose(second[A], [[0.75 * 1 + 0.25 * 2], [0.25 * 7]], rtol=1e-4)
    np.testing.assert_allclose(second[B], [[0.75 * 3 + 0.25 * 0.5, 0.0]], rtol=1e-4)
    np.testing.assert_array_equal(first[A], second[A][:1])
    np.testing.assert_array_equal(first[B], second[B][:, :1])


def test_hetlora_of_nothing_learned_is_a_plain_mean():
    first, _ = hetlora.exchange(made_of([([[1.0]], [[0.0]]), ([[3.0]], [[0.0]])]))
    assert first[A] == 2.0


def test_hetlora_goes_on_without_the_last_ranks_of_a_device_on_which_they_have_shrunk():
    wide = arrays([[1.0], [2.0], [3.0]], [[1.0, 1.0, 1.0]])
    memories = [{}, {}]
    shrunk, grown = ({name: np.zeros_like(array) for name, array in wide.items()} for _ in range(2))
    shrunk[A][2], grown[A][2] = -1.0, 1.0  # the product of the last rank was 3 and is 2 and 4
    first, second = hetlora.exchange(Round([wide] * 2, [shrunk, grown], [1, 1], lambda *_: 0.0, memories=memories))
    assert [memory["rank"].tolist() for memory in memories] == [[2.0], [3.0]]
    assert (first[A][2], first[B][0, 2]) == (0, 0)
    # What was pruned is no part of the mean: |BA| is 3 of one and 7 of the other device.
    assert second[A][2].item() == pytest.approx(0.7 * 4, rel=1e-3)
    np.testing.assert_array_equal(first[A][:2], second[A][:2])
    again, _ = hetlora.exchange(Round([first, second], [grown, grown], [1, 1], lambda *_: 0.0, memories=memories))
    assert (again[A][2], again[B][0, 2]) == (0, 0)


def test_flexlora_cuts_the_mean_product_to_the_rank_of_each_device():
    # BA: diag(4, 0) and diag(0, 2); the mean is diag(2, 1), its best approximation of rank 1 is diag(2, 0).
    first = ([[2.0, 0.0]], [[2.0], [0.0]])
    second = ([[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]])
    one, two = flexlora.exchange(made_of([first, second]))
    np.testing.assert_allclose(one[B] @ one[A], [[2, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(two[B] @ two[A], [[2, 0], [0, 1]], atol=1e-6)


def test_flexlora_equals_the_dense_decomposition_of_the_weighted_mean():
    rng = np.random.default_rng(0)
    devices = [(rng.standard_normal((rank, 7)), rng.standard_normal((5, rank))) for rank in (1, 3, 2)]
    weights = [1, 2, 5]
    found = flexlora.exchange(made_of(devices, weights))
    mean = sum(w * np.float32(b) @ np.float32(a) for w, (a, b) in zip(weights, devices, strict=True)) / 8
    u, s, vt = np.linalg.svd(mean)
    for (a, _), result in zip(devices, found, strict=True):
        rank = len(a)
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        np.testing.assert_allclose(result[B] @ result[A], best, atol=1e-5)
        assert result[A].dtype == result[B].dtype == np.float32


def pair(expert, a, b):
    name = f"{expert}.blk.0.ffn_up"
    return {f"{name}.lora_a": np.array(a, np.float32), f"{name}.lora_b": np.array(b, np.float32)}


def test_fedsa_lora_passes_a_and_keeps_b():
    method, names = find_method("fedsa-lora"), [A, B, "router.blk.0"]
    assert list(filter(method.shares, names)) == [A]
    found = Round([{A: np.float32([[1.0]])}] * 2, [{A: np.float32([[1.0]])}, {A: np.float32([[3.0]])}], [1, 1], lambda *_: 0.0)
    assert [result[A].item() for result in method.exchange(found)] == [3.0, 3.0]  # 1 + (1 + 3) / 2


def test_fedalt_gives_each_device_the_mean_of_the_others_and_leaves_its_own_alone():
    method = find_method("fedalt")
    zeros = pair("generalist", [[9.0]], [[9.0]]) | pair("specialist.1", [[0.0]], [[0.0]])
    own = [pair("specialist.1", [[each]], [[10 * each]]) for each in (1.0, 2.0, 6.0)]
    first, second, third = method.exchange(Round([zeros] * 3, own, [1, 1, 3], lambda *_: 0.0))
    assert (first[A], first[B]) == (5.0, 50.0)  # (2 + 3 * 6) / 4
    assert (second[A], second[B]) == (4.75, 47.5)  # (1 + 3 * 6) / 4
    assert (third[A], third[B]) == (1.5, 15.0)
    assert first.keys() == {A, B}  # so nothing overwrites the individual expert
    assert list(filter(method.freezes, [*zeros, "router.blk.0"])) == [A, B]


def test_fedex_lora_keeps_what_the_mean_of_products_has_and_the_product_of_means_has_not():
    method, rng = find_method("fedex-lora"), np.random.default_rng(0)
    shapes = {"generalist": (6, 6), "specialist.1": (6, 6)}  # of a rank that holds the whole residual
    first = {e: pair(e, rng.standard_normal((r, 5)), rng.standard_normal((4, q))) for e, (r, q) in shapes.items()}
    before = first["generalist"] | first["specialist.1"]
    changes = [pair("generalist", rng.standard_normal((6, 5)), rng.standard_normal((4, 6))) for _ in range(3)]
    weights = [1, 2, 5]
    results = method.exchange(Round([before] * 3, changes, weights, lambda *_: 0.0))
    products = [np.float64(before[B] + change[B]) @ np.float64(before[A] + change[A]) for change in changes]
    mean = sum(w * product for w, product in zip(weights, products, strict=True)) / 8
    rest_a, rest_b = first["specialist.1"].values()
    for result in results:
        kept_a, kept_b = (result[name.replace("generalist", "specialist.1")] for name in (A, B))
        np.testing.assert_allclose(result[B] @ result[A] + kept_b @ kept_a, mean + rest_b @ rest_a, atol=1e-4)
    assert list(filter(method.freezes, before)) == list(first["specialist.1"])


def test_both_experts_of_fedex_lora_count_as_much_as_the_one_of_fedavg():
    one, two = (find_method(name).layout(PLAIN, 1) for name in ("fedavg", "fedex-lora"))
    assert (two.rank, two.num_experts) == (one.rank, 2)
    assert two.scale / 2 == one.scale  # an even router gives each half a weight


def test_pcl_trusts_by_the_softmax_of_negative_perplexities():
    assert pcl.trust([5.0, 5.0]) == [0.5, 0.5]
    assert pcl.trust([1.0, 1.0 + math.log(3)]) == pytest.approx([0.75, 0.25])

    def loss(device, found):  # the perplexity is 1 with one's own experts and 1 + log 3 with the other's
        own = [0.0, 4.0][device]
        return 0.0 if found[A] == own else math.log(1 + math.log(3))

    first, second = pcl.exchange(made_of([([[0.0]], [[1.0]]), ([[4.0]], [[5.0]])], loss=loss))
    assert (first[A], first[B]) == pytest.approx((0.25 * 4, 0.75 * 1 + 0.25 * 5))
    assert (second[A], second[B]) == pytest.approx((0.75 * 4, 0.75 * 5 + 0.25 * 1))
    assert find_method("pcl").downloads(4) == 3


def shared_by(name, specialists=2):
    method = find_method(name)
    names = [A, *(f"specialist.{n + 1}.x" for n in range(specialists)), "router.blk.0"]
    return [each for each in names if method.shares(each)]


def test_fdlora_trains_alone_then_averages_then_fuses_as_validation_prefers():
    method, memories = find_method("fdlora"), [{}, {}]
    assert method.first_exchange(5) == 2  # of five rounds, the first is alone and the second ends with a mean
    alone = made_of([([[1.0]], [[2.0]]), ([[3.0]], [[4.0]])])
    first = method.exchange(replace(alone, number=2, rounds=5, memories=memories))
    assert [(result[A], result[B]) for result in first] == [(2.0, 3.0)] * 2
    assert [(memory[A], memory[B]) for memory in memories] == [(1.0, 2.0), (3.0, 4.0)]

    wanted = [1.5, 0.0]  # of A: the first device's validation text likes p + 2 g = 1.5 best, the second's 3 p + 2 g = 0

    def loss(device, found):
        return ((found[A] - wanted[device]) ** 2 + (found[B] - found[A] * 2) ** 2).item()

    assert [method.resets_moments(number, 5) for number in range(1, 6)] == [False, True, False, False, False]
    last = Round([first[0]] * 2, [arrays([[0.0]], [[0.0]])] * 2, [1, 1], loss, 5, 5, memories)
    for device, result in enumerate(method.exchange(last)):
        personal = {name: memories[device][name] for name in (A, B)}
        ends = [loss(device, fdlora.fuse(personal, first[0], start)) for start in fdlora.STARTS]
        assert loss(device, result) < min(ends)


def test_the_outer_step_of_fdlora_is_that_of_torch_with_nesterov_momentum():
    tensor = torch.tensor([1.0], dtype=torch.float64)
    outer = torch.optim.SGD([tensor], lr=0.7, momentum=0.9, nesterov=True)
    memories, now = [{}, {}], 1.0
    for changes in ((1.0, 3.0), (-0.5, 0.1), (0.2, 0.2)):
        state = made_of([([[change]], [[0.0]]) for change in changes])
        state = replace(state, before=[arrays([[now]], [[0.0]])] * 2, memories=memories)
        first, second = fdlora.outer_step(state)
        tensor.grad = torch.tensor([-sum(changes) / 2], dtype=torch.float64)
        outer.step()
        assert first[A].item() == second[A].item() == pytest.approx(tensor.item(), rel=1e-4)
        now = first[A].item()


def test_as_many_weights_learn_in_the_larger_ffa_lora_as_in_fedavg(tiny_base):
    def learning(name, averaging):
        sizes = expected_shapes(find_method(name).layout(PLAIN, 1), tiny_base.hparams)
        experts = [each for each in sizes if not each.startswith("router.")]
        return sum(math.prod(sizes[each]) for each in rounds.trained_names(experts, averaging, 1) if each.endswith("_b"))

    assert learning("ffa-lora-r32", "freeze-a") == 2 * learning("fedavg", "freeze-a")


def test_the_search_for_two_weights_finds_the_lowest_point_of_a_bowl():
    # From (1, 0): down to p = 0.75, where g = 0.25 is the lowest of all.
    asked = []

    def bowl(weights):
        asked.append(weights)
        return (weights[0] - 0.75) ** 2 + (weights[1] - 0.25) ** 2

    assert fdlora.lowest(bowl) == (0.75, 0.25)
    assert len(asked) == len(set(asked)) < 20


def test_what_each_method_shares():
    for name in ("local", "local-train-valid", "local-even", "centralized", "comigs-2s"):
        assert shared_by(name) == []
    for name in ("comigs-1g1s", "comigs-1gxs", "comigs-1g7s", "comigs-tr", "pfedmoe"):
        assert shared_by(name) == [A]
    for name in (
        "comigs-2g",
        "fedavg",
        "fedavg-even",
        "ffa-lora",
        "ffa-lora-r32",
        "hetlora",
        "flexlora",
        "pcl",
        "fdlora",
        "fedex-lora",
        "fedalt",
    ):
        assert shared_by(name) == [A, "specialist.1.x", "specialist.2.x"]


@pytest.mark.parametrize("form", ["lora", "parallel"])
def test_the_generalist_that_passes_is_what_the_product_lets_out(make_adapters, form):
    names = make_adapters(2, attention=True, form=form).named
    assert set(filter(find_method("comigs-1g1s").shares, names)) == set(make_adapters(2, attention=True, form=form).generalist())


def test_layouts_give_devices_the_experts_that_the_names_say():
    counts = {name: METHODS[name].layout(PLAIN, 3).num_specialists for name in METHODS}
    assert {counts[name] for name in ("comigs-1g1s", "comigs-2g", "comigs-2s", "comigs-tr", "pfedmoe")} == {1}
    assert [counts[f"comigs-1g{n}s"] for n in range(2, 8)] == [2, 3, 4, 5, 6, 7]
    assert counts["comigs-1gxs"] == counts["comigs-edge"] == 3
    assert find_method("comigs-1gxs").layout(PLAIN, 0).experts_per_token == 1
    singles = (
        "local",
        "local-train-valid",
        "fedavg",
        "centralized",
        "ffa-lora",
        "ffa-lora-r32",
        "hetlora",
        "flexlora",
        "pcl",
        "fdlora",
    )
    assert {counts[name] for name in singles} == {0}


@pytest.mark.parametrize("plain", [PLAIN, PLAIN_PARALLEL], ids=["lora", "parallel"])
def test_one_expert_alone_has_as_many_weights_as_two(tiny_base, plain):
    two = weights_of(find_method("comigs-1g1s").layout(plain, 1), tiny_base.hparams)
    assert weights_of(find_method("fedavg").layout(plain, 1), tiny_base.hparams) == two


@pytest.mark.parametrize("specialists", [0, 1, 3])
def test_unequal_ranks_have_the_weights_of_all_experts_and_one_scale(tiny_base, specialists):
    alone = match_parameters(PLAIN, specialists)
    mixed = find_method("comigs-1gxs").layout(PLAIN, specialists)
    assert weights_of(alone, tiny_base.hparams) == weights_of(mixed, tiny_base.hparams)
    assert alone.scale == pytest.approx(find_method("fedavg").layout(PLAIN, 1).scale)


def test_where_routers_learn_and_experts_too():
    assert {name for name, method in METHODS.items() if method.router == "training"} == {"comigs-tr"}
    assert {name for name, method in METHODS.items() if method.router == "jointly"} == {"pfedmoe", "fedalt"}
    assert {name for name, method in METHODS.items() if method.router == "even"} == {"local-even", "fedavg-even", "fedex-lora"}
    assert find_method("local-train-valid").text == "both"
    assert find_method("centralized").text == "pooled"


def test_methods_are_found_by_name_and_an_unknown_one_is_a_sentence():
    assert set(CORE) < set(METHODS)
    with pytest.raises(ComigsError, match=r"no method 'fedprox'; the methods are local, .*pcl"):
        find_method("fedprox")
