"""Fine-tuning: one function for any model, resumed bit for bit, scored in two ways that agree."""

from unittest.mock import patch

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from modernllm.data.encoding import EncodedRows, RowBatches
from modernllm.data.tasks import TaskSet
from modernllm.evaluation.seq2seq import greedy_answers, score_pairs
from modernllm.experiments.finetuning import finetune
from modernllm.training.callbacks import Callback
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import Objective, Seq2Seq

PAD, END = 0, 1

SETTINGS = {"learning_rate": 5e-3, "warmup_steps": 2, "weight_decay": 0.0, "precision": "fp32", "eval_every": 10}


@pytest.fixture
def tasks():
    "Copies of one to three tokens."
    rows = [[3 + a, 3 + b, END][i:] for a in range(6) for b in range(6) for i in (0, 1)]
    pairs = [EncodedRows("copies", split, rows[k::4], rows[k::4]) for k, split in enumerate(("train", "validation", "test"))]
    return TaskSet("copies", *pairs)


def tune(model, tasks, config, **given):
    batches = RowBatches(tasks.train, batch_size=8, seed=config.seed)
    return finetune(model, Seq2Seq(), batches, lambda m, _: score_pairs(m, tasks.validation), config, **given)


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=12, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=1, num_decoder_layers=1, dropout_rate=0.0,
        decoder_start_token_id=PAD,
    ))  # fmt: skip


def bart():
    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(
        vocab_size=12, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=16, dropout=0.0, attention_dropout=0.0, pad_token_id=PAD,
        eos_token_id=END, bos_token_id=PAD, decoder_start_token_id=PAD, forced_eos_token_id=None,
    ))  # fmt: skip


@pytest.mark.parametrize("make", [t5, bart])
def test_any_encoder_decoder_model_is_tuned(make, tasks, tmp_path):
    tuned = tune(make(), tasks, TrainConfig(max_steps=30, **SETTINGS), folder=tmp_path)
    steps, losses = tuned.curve()
    assert steps == [0, 10, 20, 30] and min(losses[1:]) == tuned.best["loss"] < losses[0]
    assert score_pairs(tuned.model, tasks.validation)["loss"] == pytest.approx(tuned.best["loss"], rel=1e-5)


def test_exact_match_is_that_of_generate(tasks):
    tuned = tune(t5(), tasks, TrainConfig(max_steps=40, **SETTINGS))
    said = greedy_answers(tuned.model, tasks.test.inputs, 3, batch_size=5)
    hits = sum([*answer, END] == target for answer, target in zip(said, tasks.test.labels))
    assert score_pairs(tuned.model, tasks.test, batch_size=7)["exact_match"] == pytest.approx(hits / len(said))


def test_any_objective_and_measure_is_tuned(tmp_path):
    "A classifier, whose best evaluation is not its last, ends with the weights of the best."
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from modernllm.training.objectives import LossOutput

    class Classify(Objective):
        def loss(self, model, batch):
            loss = model(**batch).loss
            return LossOutput(loss * len(batch["labels"]), torch.tensor(float(len(batch["labels"]))))

    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                                       num_attention_heads=2, num_labels=2, pad_token_id=0))
    rows = EncodedRows("odd", "train", [[3 + k % 7] for k in range(14)], [k % 7 % 2 for k in range(14)])
    asked = []

    def evaluate(model, objective):
        asked.append([p.detach().clone() for p in model.parameters()])
        return {"loss": [5.0, 3.0, 1.0, 2.0][len(asked) - 1]}

    batches, config = RowBatches(rows, batch_size=4), TrainConfig(max_steps=30, **SETTINGS)
    tuned = finetune(model, Classify(), batches, evaluate, config, folder=tmp_path)
    assert tuned.curve() == ([0, 10, 20, 30], [5.0, 3.0, 1.0, 2.0]) and tuned.best["step"] == 20
    assert all(torch.equal(a, b) for a, b in zip(tuned.model.parameters(), asked[2]))


class Die(Callback):
    def updated(self, trainer):
        if trainer.step == 15:
            raise KeyboardInterrupt


def test_a_killed_tuning_goes_on_bit_for_bit(tasks, tmp_path):
    config = TrainConfig(max_steps=20, checkpoint_every_steps=5, **SETTINGS)
    whole = tune(t5(), tasks, config, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(t5(), tasks, config, callbacks=[Die()], folder=tmp_path / "killed")
    again = tune(t5(), tasks, config, folder=tmp_path / "killed")
    assert again.curve()[1][-1] == whole.curve()[1][-1]
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_measurements_give_the_model_back_module_by_module(tasks):
    model = t5().train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    sources = tasks.test.inputs[:4]
    expected = greedy_answers(model, sources, 6)
    model.generation_config.update(repetition_penalty=9.0, num_beams=3, no_repeat_ngram_size=1)
    assert greedy_answers(model, sources, 6) == expected
    with patch.object(model, "forward", side_effect=KeyboardInterrupt):
        for measure in (lambda: greedy_answers(model, sources, 6), lambda: score_pairs(model, tasks.test)):
            with pytest.raises(KeyboardInterrupt):
                measure()
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.num_beams == 3
