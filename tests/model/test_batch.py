"""Packing: nothing lost, nothing added, and clear complaints."""

import pytest
import torch

from minibert.common.errors import UserError
from minibert.model.batch import Batch, pack


def test_pack_by_hand():
    batch = pack([[11, 12, 13], [21, 22], [31]], segments=[[0, 1, 1], [0, 0], [1]])
    assert batch.ids.tolist() == [11, 12, 13, 21, 22, 31]
    assert batch.segments.tolist() == [0, 1, 1, 0, 0, 1]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0]
    assert batch.offsets.tolist() == [0, 3, 5, 6]
    assert batch.lengths.tolist() == [3, 2, 1]
    assert batch.first_tokens.tolist() == [0, 3, 5]
    assert batch.ids[batch.first_tokens].tolist() == [11, 21, 31]


def test_types_are_those_that_kernels_and_tables_ask_for():
    batch = pack([[1, 2], [3]])
    assert [t.dtype for t in batch] == [torch.int64, torch.int64, torch.int64, torch.int32, torch.int64]
    assert batch.segments.tolist() == [0, 0, 0]
    assert batch.first_tokens.dtype == torch.int64


def test_given_positions_are_kept():
    assert pack([[1, 2], [3]], positions=[[5, 6], [7]]).positions.tolist() == [5, 6, 7]


@pytest.mark.parametrize("ids, options, complaint", [
    ([], {}, "at least one sequence"),
    ([[1], []], {}, "no empty one"),
    ([[1, 2], [3]], dict(segments=[[0, 0]]), "segments and ids differ"),
    # as many in all, but not in each
    ([[1, 2], [3]], dict(segments=[[0], [0, 0]]), "segments and ids differ"),
    ([[1, 2], [3]], dict(positions=[[0], [0, 1]]), "positions and ids differ"),
])
def test_what_cannot_be_packed(ids, options, complaint):
    with pytest.raises(UserError, match=complaint):
        pack(ids, **options)


def test_to_moves_tokens_and_leaves_lengths():
    batch = pack([[1, 2], [3]])
    assert batch.to("cpu") is batch
    moved = batch.to("meta")  # stands for any other device
    assert isinstance(moved, Batch)
    assert {t.device.type for t in moved[:-1]} == {"meta"}
    assert moved.lengths is batch.lengths
