"""Pieces are joined, packed and shifted to the right places."""

import numpy as np

from lm_jax.data.views import layout

ROW, SIZES = np.array([0, 0, 2]), np.array([3, 2, 4])


def test_runs_are_joined_and_a_negative_start_is_an_id():
    assert layout.join(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    ids, sizes = layout.weave(np.array([7, 8, 9]), (~50, 1), (np.array([0, 1]), np.array([1, 2])))
    assert ids.tolist() == [50, 7, 50, 8, 9]
    assert sizes.tolist() == [2, 3]
    assert layout.join(np.array([], int), np.array([], int)).size == 0


def test_a_decoder_predicts_within_a_piece_and_not_its_prefix():
    batch = layout.decoder_rows(np.arange(1, 10), ROW, SIZES, np.array([2, 0, 1]), (3, 4), 99)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4], [99] * 4, [6, 7, 8, 9]]
    assert batch["targets"].tolist() == [[2, 3, 4, 5], [99] * 4, [7, 8, 9, 99]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2], [0] * 4, [1] * 4]
    assert batch["positions"].tolist() == [[0, 1, 2, 0], [0] * 4, [0, 1, 2, 3]]
    assert batch["prefix"].tolist() == [[1, 1, 0, 0], [0] * 4, [1, 0, 0, 0]]
    assert batch["weights"].tolist() == [[0, 1, 0, 1], [0] * 4, [1, 1, 1, 0]]


def test_an_encoder_decoder_has_pieces_side_by_side():
    batch = layout.encoder_decoder_rows(
        (np.arange(10, 19), SIZES),
        (np.arange(20, 26), np.array([1, 2, 3])),
        ROW,
        ((3, 5), (3, 4)),
        (0, 99),
    )
    assert batch["inputs"].tolist() == [[10, 11, 12, 13, 14], [99] * 5, [15, 16, 17, 18, 99]]
    assert batch["input_segment_ids"].tolist() == [[1, 1, 1, 2, 2], [0] * 5, [1, 1, 1, 1, 0]]
    assert batch["input_positions"].tolist() == [[0, 1, 2, 0, 1], [0] * 5, [0, 1, 2, 3, 0]]
    assert batch["tokens"].tolist() == [[0, 0, 21, 99], [99] * 4, [0, 23, 24, 99]]
    assert batch["targets"].tolist() == [[20, 21, 22, 99], [99] * 4, [23, 24, 25, 99]]
    assert batch["segment_ids"].tolist() == [[1, 2, 2, 0], [0] * 4, [1, 1, 1, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0], [0] * 4, [1, 1, 1, 0]]
