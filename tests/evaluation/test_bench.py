"""The bench: both sides do the same work, the arithmetic of the result, refusals."""

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.evaluation.bench import BenchResult, ZipfBatches, bench_train


def test_both_sides_train_alike_and_threads_are_restored():
    before = torch.get_num_threads()
    result = bench_train("tiny", threads=1, seconds=0, steps=3, batch_size=4, context=16)
    assert result.rounds == 3 and torch.get_num_threads() == before
    assert result.loss == pytest.approx(result.loss_llama, abs=0.01)
    assert result.loss < 6.2  # of ln 512 = 6.24: it learns
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert 0 < result.share < 1 and 0 < result.share_llama < 1
    assert "transformers Llama" in str(result) and f"ratio {result.ratio:.2f}" in str(result)


def test_batches_depend_on_their_number_alone():
    batches = ZipfBatches(50, 3, 7)
    first, again, other = batches[4], ZipfBatches(50, 3, 7)[4], batches[5]
    assert torch.equal(first["input_ids"], again["input_ids"]) and not torch.equal(first["input_ids"], other["input_ids"])
    assert torch.equal(first["input_ids"][:, 1:], first["targets"][:, :-1])


def test_the_printed_table():
    result = BenchResult(
        shape="medium", parameters=6_843_648, batch="16 × 256", threads=2, device="CPU", rounds=9, steps=2, ours=5512.0,
        llama=3675.0, ratio=1.5, ratio_low=1.4, ratio_high=1.6, share=0.41, share_llama=0.27, limit=870e9, loss=8.1,
        loss_llama=8.1,
    )
    lines = str(result).splitlines()
    assert lines[2].split() == ["modernllm", "Trainer", "5,512", "41%", "8.100"]
    assert lines[4].startswith("ratio 1.50 (1.40 to 1.60 over 9 rounds")


@pytest.mark.parametrize(
    "change, named",
    [({"shape": "mediun"}, "did you mean 'medium'"), ({"threads": 0}, "threads: given 0"), ({"steps": 0}, "steps: given 0")],
)
def test_bad_input(change, named):
    with pytest.raises(InputError, match=named):
        bench_train(**change)
