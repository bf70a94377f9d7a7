"""Packed logits: ids come back exactly, log-probabilities within half a step, what is read is a distribution."""

import math

import pytest
import torch

from modernllm.distill.packed_logits import FLOOR, pack_ids, pack_top, packed_size, unpack_ids, unpack_top
from modernllm.distill.signals import TopLogits, top_logits


def outcomes(top: TopLogits) -> torch.Tensor:
    "Log-probabilities of the kept tokens, by ascending id, and of all others."
    return torch.cat((top.logprobs.gather(1, top.ids.argsort()), top.tail[:, None]), 1)


def divergence(exact: TopLogits, read: TopLogits) -> torch.Tensor:
    p = outcomes(exact)
    return (p.exp() * (p.clamp(min=-1e4) - outcomes(read).clamp(min=-1e4))).sum(-1)


@pytest.mark.parametrize("count, vocab_size", [
    (1, 1), (1, 300), (1, 151_936), (4, 70_000), (7, 256), (7, 257), (32, 8192), (128, 49_152), (128, 128_256), (300, 300),
])
def test_ids_come_back(count, vocab_size):
    torch.manual_seed(count)
    ids = torch.randint(vocab_size, (40, count))  # with repetitions
    ids[0], ids[1] = 0, vocab_size - 1
    ids[2, 0], ids[2, -1] = 0, vocab_size - 1
    ids = ids.sort().values
    packed = pack_ids(ids, vocab_size)
    assert packed.dtype == torch.uint8 and unpack_ids(packed, count, vocab_size).equal(ids)
    assert packed.shape[1] <= count * (2 if vocab_size <= 2**16 else 3) + 1  # never much more than plain numbers
    assert unpack_ids(packed[:0], count, vocab_size).shape == (0, count)


def test_the_code_by_hand():
    # 5 ids below 1,000: low bytes, then a one at (id >> 8) + its number: 0, 1, 2, 3 + 2, 4 + 3 → bits 0, 1, 2, 5, 7
    assert pack_ids(torch.tensor([[0, 3, 3, 700, 999]]), 1000).tolist() == [[0, 3, 3, 700 - 512, 999 - 768, 0b10100111]]


@pytest.mark.parametrize("vocab_size, size", [(8192, 282), (49_152, 302), (50_257, 303), (128_256, 341)])
def test_bytes_a_token_at_128(vocab_size, size):
    assert packed_size(128, vocab_size) == size
    top = TopLogits(torch.arange(128)[None], torch.full((1, 128), math.log(1 / 129)), torch.tensor([math.log(1 / 129)]))
    assert pack_top(top, vocab_size).shape == (1, size)


@pytest.mark.parametrize("slope", [0.8, 1.2, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 16, 128])
def test_error_is_half_a_step_and_the_divergence_small(slope, k):
    torch.manual_seed(0)
    logits = -slope * torch.arange(1, 5001).log() + 0.5 * torch.randn(30, 5000)
    exact = top_logits(logits.gather(1, torch.rand(30, 5000).argsort()), k)
    read = unpack_top(pack_top(exact, 5000), k, 5000)
    assert read.ids.equal(exact.ids.sort().values) and read.logprobs.dtype == read.tail.dtype == torch.float32
    torch.testing.assert_close(outcomes(read).exp().sum(-1), torch.ones(30))
    span = exact.logprobs.amax(-1) - exact.logprobs.amin(-1)
    error = (outcomes(read) - outcomes(exact)).abs()
    half = span / 510 * 1.001
    shift = 0.5 * half.max() + 0.01  # of the normalisation and of numbers of 16 bits
    assert (error[:, :k] <= half[:, None] + shift).all()
    assert divergence(exact, read).abs().max() < 1e-4


def test_all_tokens_kept():
    exact = top_logits(3 * torch.randn(20, 300, generator=torch.Generator().manual_seed(0)), 300)
    read = unpack_top(pack_top(exact, 300), 300, 300)
    assert read.ids.tolist() == [list(range(300))] * 20 and (read.tail == -math.inf).all()
    step = (exact.logprobs.amax(-1) - exact.logprobs.amin(-1)) / 255
    assert (divergence(exact, read) < step**2 / 8).all()  # half the square of the largest error


def test_certain_uniform_and_impossible_tokens():
    certain = top_logits(torch.tensor([[0.0, 200.0, -200.0, 100.0]]), 3)
    read = unpack_top(pack_top(certain, 4), 3, 4)
    assert read.logprobs.exp()[0].tolist() == pytest.approx([0, 1, 0], abs=1e-9) and read.logprobs.isfinite().all()
    assert read.logprobs.min() == pytest.approx(FLOOR, abs=0.1)
    uniform = top_logits(torch.zeros(1, 8), 4)
    read = unpack_top(pack_top(uniform, 8), 4, 8)
    assert outcomes(read).exp()[0].tolist() == pytest.approx([1 / 8] * 4 + [1 / 2], rel=1e-3)
    impossible = top_logits(torch.tensor([[0.0, -math.inf, 0.0, -math.inf]]), 3)  # a teacher that forbids tokens
    read = unpack_top(pack_top(impossible, 4), 3, 4)
    assert read.logprobs.isfinite().all() and outcomes(read).exp()[0].sum() == pytest.approx(1)
