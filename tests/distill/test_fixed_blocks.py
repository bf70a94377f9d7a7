"""Fixed blocks: always the same text under a number, each once an epoch, in an order that follows from seed and epoch."""

import numpy as np
import pytest
import torch

from modernllm.core.config import InputError
from modernllm.data.corpus import EpochBlocks, TokenSplit
from modernllm.data.encoding import IGNORE
from modernllm.distill.fixed_blocks import FixedBlocks


def a_split(n=103, seed=0, starts=(0, 17, 60)):
    tokens = np.random.default_rng(seed).integers(1, 50, n).astype(np.uint16)
    tokens[list(starts)] = 0
    return TokenSplit("noise", "train", tokens=tokens, document_starts=np.array(starts), vocab_size=50, n_bytes=n, n_words=n,
                      n_line_ends=0, fingerprint="f")


def batches(split=None, **settings):
    return FixedBlocks(split or a_split(), **{"block_size": 8, "batch_size": 4, "seed": 1, **settings})


def test_blocks_are_those_of_the_split_in_every_epoch():
    made = batches()
    inputs, targets = made.split.blocks(8)
    seen = []
    for i in range(39):  # 13 blocks in batches of 4: three epochs are 39 rows, these are 12
        batch = made[i]
        for row, number in enumerate(batch["rows"].tolist()):
            seen.append(number)
            assert batch["input_ids"][row].tolist() == inputs[number].tolist()
            assert batch["targets"][row].tolist() == targets[number].tolist()
    epochs = [seen[n : n + 13] for n in range(0, 156, 13)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 12


def test_a_batch_follows_from_seed_and_number():
    made, again, other = batches(), batches(), batches(seed=2)
    order = [9, 0, 4, 9, 123_456]
    for i in order:
        assert all(made[i][name].equal(again[i][name]) for name in ("input_ids", "targets", "rows"))
    assert any(not made[i]["rows"].equal(other[i]["rows"]) for i in order)
    assert made.identity() != other.identity() and made.data == other.data == batches(batch_size=2).data
    with pytest.raises(IndexError):
        made[-1]


def test_in_order_the_last_batch_is_padded():
    made = batches(shuffle=False)
    assert [made.numbers(i) for i in range(3, 5)] == [[12, -1, -1, -1], [0, 1, 2, 3]] and len(made) == 4
    last = made[3]
    assert (last["targets"][1:] == IGNORE).all() and last["rows"].tolist() == [12, -1, -1, -1]
    assert (last["targets"][0] != IGNORE).sum() == 102 - 12 * 8


def test_documents_apart():
    made = batches(separate_documents=True, shuffle=False)
    whole = EpochBlocks(made.split, 8, None)
    for i, number in ((0, 2), (1, 7)):
        assert made[i]["position_ids"][number % 4].tolist() == whole.block(number)[2].tolist()
    assert made[0]["position_ids"][2].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]  # the second document starts at token 17
    assert "position_ids" not in batches()[0]


def test_data_depends_on_tokens_and_cut():
    one = batches().data
    others = (batches(a_split(seed=1)), batches(block_size=9), batches(separate_documents=True), batches(a_split(104)))
    assert len({str(made.data) for made in others} | {str(one)}) == 5


@pytest.mark.parametrize("wrong", [{"block_size": 0}, {"block_size": 103}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        batches(**wrong)


def test_types():
    assert all(values.dtype == torch.int64 for values in batches(separate_documents=True)[0].values())
