"""Rows and batches, worked out by hand."""

import pytest
import torch

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.training.batches import Rows


def test_a_row_predicts_the_next_token_of_the_same_document_only():
    encoded = [Encoded([10, 11, 12], [True] * 3), Encoded([20, 21, 22, 23], [True, True, False, True])]
    rows = Rows(encoded, 6, 0)
    (batch,) = rows.first(9, 4)
    assert batch.tokens.tolist() == [[10, 11, 12, 20, 21, 22]]
    assert batch.targets.tolist() == [11, 12, 20, 21, 22, 23]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 1]]
    # 20 opens a document and 22 is not scored: neither counts as a target.
    assert batch.scored.tolist() == [True, True, False, True, False, True]


def test_every_row_comes_once_in_an_epoch_and_the_last_one_is_filled_up():
    rows = Rows([Encoded(list(range(100)), [True] * 100)], 8, 3)
    assert len(rows) == 13  # 99 targets in rows of 8
    firsts = sorted(int(row[0]) for number in range(13) for row in rows.batch(number, 1).tokens)
    assert firsts == list(range(0, 100, 8))
    assert sum(rows.batch(number, 1).num_scored for number in range(13)) == 99


def test_a_batch_depends_on_its_number_alone():
    encoded = [Encoded(list(range(200)), [True] * 200)]
    one, other = Rows(encoded, 8, 3), Rows(encoded, 8, 3)
    for number in range(20):
        one.batch(number, 4)
    for number in (17, 3, 9):
        assert torch.equal(one.batch(number, 4).tokens, other.batch(number, 4).tokens)
    assert not torch.equal(one.batch(0, 4).tokens, Rows(encoded, 8, 4).batch(0, 4).tokens)


def test_rows_behind_the_first_ones_are_the_others_and_keep_their_places():
    rows = Rows([Encoded(list(range(200)), [True] * 200)], 8, 3)
    rest = rows.after(5)
    first = {int(row[0]) for batch in rows.first(5, 2) for row in batch.tokens}
    taken = [rest.batch(number, 4) for number in range(5)]
    assert {int(row[0]) for batch in taken for row in batch.tokens} == set(range(0, 200, 8)) - first
    assert sorted(place for batch in taken for place in batch.places) == list(range(5, 25))
    for batch in taken:
        for row, place in zip(batch.tokens, batch.places, strict=True):
            assert torch.equal(row, rows.batch(place, 1).tokens[0])
    assert rest.batch(5, 4).tokens.tolist() != taken[0].tokens.tolist()  # the next epoch has an order of its own


def test_rows_without_a_scored_token_are_left_out():
    for first, expected in ((20, 2), (17, 2), (16, 3)):  # a row of 8 predicts the token behind it
        rows = Rows([Encoded(list(range(32)), [False] * first + [True] * (32 - first))], 8, 0)
        assert len(rows) == expected
    with pytest.raises(ComigsError, match="no token to learn from"):
        Rows([Encoded([1, 2, 3], [False] * 3)], 8, 0)


def test_a_digest_is_of_ids_borders_scores_order_and_length():
    ids, half = list(range(40)), [Encoded(list(range(20)), [True] * 20), Encoded(list(range(20, 40)), [True] * 20)]
    one = [Encoded(ids, [True] * 40)]
    texts = [(one, 8, 0), (half, 8, 0), ([Encoded(ids[::-1], [True] * 40)], 8, 0), (one, 8, 1), (one, 10, 0)]
    assert len({Rows(*text).digest() for text in texts}) == len(texts)
    assert Rows(*texts[0]).digest() == Rows(*texts[0]).digest()


def test_a_digest_is_of_what_counts_where_passages_are_left_out_and_nowhere_else():
    whole = Encoded(list(range(40)), [True] * 40)
    fewer = whole._replace(scored=[number != 9 for number in range(40)])
    one, two, three = (Rows([each], 8, 0).digest() for each in (whole, fewer, fewer._replace(omits=True)))
    assert one == two != three  # of a chat what counts follows from what is read
    for texts in ((whole, fewer), (fewer, whole)):  # one document that omits some is enough, wherever it stands
        omitting = [each._replace(omits=each is fewer) for each in texts]
        assert Rows(omitting, 8, 0).digest() != Rows(texts, 8, 0).digest()


def test_new_rows_come_first_as_often_as_it_is_said_and_each_time_in_another_order():
    texts = [Encoded(list(range(start, start + 81)), [True] * 81) for start in (0, 100)]
    rows = Rows(texts, 8, 3, new=texts[1:])
    rows.new_reads = 2 * rows.num_new
    firsts = [int(rows.batch(number, 1).tokens[0, 0]) for number in range(2 * 10 + len(rows))]
    assert sorted(firsts[:10]) == sorted(firsts[10:20]) == list(range(100, 180, 8))
    assert firsts[:10] != firsts[10:20]
    assert len(set(firsts[20:])) == len(rows)
    assert [int(rows.without_new().batch(number, 1).tokens[0, 0]) for number in range(len(rows))] == firsts[20:]
    rest = rows.after(5)
    assert {int(rest.batch(number, 1).tokens[0, 0]) for number in range(len(rows) - 5)} == set(firsts[25:])
