"""Who is far from all others: against distances that numpy works out pair by pair, and against what attackers send."""

import numpy as np
import pytest

from coordinator.protocol import distances
from coordinator.protocol.distances import FAR, NEAR, sample, scores


def updates(count, size=4000, seed=0):
    found = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def scored(rows):
    half = rows.shape[1] // 2
    return scores([[row[:half] for row in rows], [sample(row[half:].reshape(2, -1)) for row in rows]])


@pytest.mark.parametrize("count", [4, 5, 9])
def test_a_score_is_the_mean_distance_to_the_nearest_others_in_the_median_of_all(count):
    rows = updates(count) * np.linspace(1, 2, count, dtype=np.float32)[:, None]
    nearest = count - (count - 3) // 2 - 2
    squares = [[np.sum((row - other) ** 2) for other in rows] for row in rows]
    means = [np.mean(sorted(row)[1 : nearest + 1]) for row in squares]  # the first is its own
    assert scored(rows) == pytest.approx([mean / np.median(means) for mean in means], rel=1e-4)


@pytest.mark.parametrize("count", [4, 6, 20, 64])
def test_like_and_orthogonal_updates_are_not_named_and_attacks_are(count):
    honest = updates(count)
    assert all(0.8 < score < 1.2 for score in scored(honest))
    for attack in (-3 * honest[0], 12 * honest[0], 4 * updates(1, seed=5)[0]):
        found = scored(np.concatenate([honest[1:], attack[None]]))
        assert found[-1] > FAR
        assert all(NEAR < score < FAR for score in found[:-1])


def test_a_copy_of_anothers_update_names_both_of_them():
    rows = updates(6)
    rows[5] = rows[2] * 1.01
    found = scored(rows)
    assert [index for index, score in enumerate(found) if score < NEAR] == [2, 5]


def test_a_tensor_that_some_did_not_send_counts_as_zeros_there():
    rows = updates(4)
    assert scores([[*rows[:3], None]]) == pytest.approx(scores([[*rows[:3], np.zeros_like(rows[3])]]))


def test_updates_that_are_all_the_same_are_nothing_unusual():
    assert scored(np.ones((5, 8), np.float32)) == [1.0] * 5


def test_a_large_tensor_is_looked_at_in_evenly_spread_numbers():
    rows = updates(4, 3 * distances.SAMPLE + 5)
    found = [sample(row) for row in rows]
    np.testing.assert_array_equal(found[0], rows[0][::4])
    assert all(0.9 < score < 1.1 for score in scores([found]))
