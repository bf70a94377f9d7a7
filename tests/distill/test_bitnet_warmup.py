"The warm-up of quantisation in a training run: its schedule, evaluations, resuming, going back."

import copy

import pytest
import torch

from modernllm.core.callbacks import Callback
from modernllm.core.config import InputError
from modernllm.core.seeding import generator
from modernllm.distill.bitlinear import BitLinear
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.distill.bitnet_warmup import BitNetWarmup
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.config import TrainConfig
from modernllm.training.guard import SpikeGuard
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import Trainer


class Rows:
    "Batch i: random tokens."

    def __getitem__(self, i):
        ids = torch.randint(0, 40, (2, 9), generator=generator(0, i))
        return {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}


class Bad(LanguageModelling):
    "Keeps λ of every call; the loss of call number `bad` is NaN."

    def __init__(self, bad=None):
        super().__init__()
        self.calls, self.bad = [], bad

    def loss(self, model, batch):
        self.calls.append(strengths(model))
        out = super().loss(model, batch)
        return out._replace(total=out.total * torch.nan) if len(self.calls) == self.bad else out


def strengths(model):
    (found,) = {module.strength for module in model.modules() if isinstance(module, BitLinear)}
    return found


def student():
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ModernDecoderLM(ModernLLMConfig(**shape))


def trainer_of(model, *callbacks, objective=None, folder=None, evaluate=None, **settings):
    config = TrainConfig(**{"max_steps": 6, "warmup_steps": 0, "precision": "fp32", "checkpoint_every_minutes": 0} | settings)
    return Trainer(model, objective or Bad(), Rows(), config, callbacks=callbacks, folder=folder, evaluate=evaluate)


def test_the_schedule_and_evaluations():
    seen, objective = [], Bad()

    def evaluate(model, objective):
        seen.append(strengths(model))
        return {"loss": 1.0}

    model = to_bitnet(student())
    trainer_of(model, BitNetWarmup(4), objective=objective, evaluate=evaluate, eval_every=2).fit()
    assert objective.calls == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert seen == [1.0] * 3 and strengths(model) == 1.0


def test_without_steps_it_is_ternary_at_once():
    objective = Bad()
    trainer_of(to_bitnet(student()), BitNetWarmup(0), objective=objective, max_steps=2).fit()
    assert objective.calls == [1.0, 1.0]


def test_a_run_that_stops_early_leaves_a_ternary_model():
    class Stop(Callback):
        def step_end(self, trainer, row):
            trainer.stop("enough")

    model = to_bitnet(student())
    trainer_of(model, BitNetWarmup(100), Stop(), max_steps=200).fit()
    assert strengths(model) == 1.0


def test_resumed_bit_for_bit(tmp_path):
    class Killed(Exception):
        pass

    class Kill(Callback):
        def checkpoint(self, trainer, path):
            if trainer.step == 3:
                raise Killed

    whole, cut = to_bitnet(student()), to_bitnet(student())
    trainer_of(whole, BitNetWarmup(5)).fit()
    with pytest.raises(Killed):
        trainer_of(cut, Kill(), BitNetWarmup(5), folder=tmp_path, checkpoint_every_steps=3).fit()
    fresh, objective = to_bitnet(student()), Bad()
    trainer_of(fresh, BitNetWarmup(5), objective=objective, folder=tmp_path).fit()
    assert objective.calls == [0.6, 0.8, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters()))
    with pytest.raises(InputError, match="steps is 7 here and 5 there"):
        trainer_of(to_bitnet(student()), BitNetWarmup(7), folder=tmp_path).fit()


@pytest.mark.parametrize("first", [True, False])
def test_going_back_before_a_bad_step(tmp_path, first):
    objective, warmup, guard = Bad(bad=4), BitNetWarmup(5), SpikeGuard(window=1)
    callbacks = (warmup, guard) if first else (guard, warmup)
    trainer_of(to_bitnet(student()), *callbacks, objective=objective, folder=tmp_path, checkpoint_every_steps=2).fit()
    assert objective.calls == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.4, 0.6, 0.8, 1.0])  # the third is done again


def test_the_best_weights_are_ternary(tmp_path):
    model, losses = to_bitnet(student()), iter([1.0, 2.0, 3.0])
    trainer = trainer_of(model, BitNetWarmup(5), folder=tmp_path, eval_every=2, evaluate=lambda *_: {"loss": next(losses)})
    trainer.fit()
    assert trainer.load_best()["step"] == 2 and strengths(model) == 1.0


def test_bad_input():
    with pytest.raises(InputError, match="steps is -1; allowed: 0 or more"):
        BitNetWarmup(-1)
    with pytest.raises(InputError, match="no ternary layers; `to_bitnet` makes them"):
        trainer_of(student(), BitNetWarmup(3)).fit()


def test_a_warm_up_that_is_as_long_as_the_training_is_refused():
    with pytest.raises(InputError, match="has 6 steps and the training 6; allowed: a warm-up .*0 to 5 steps"):
        trainer_of(to_bitnet(student()), BitNetWarmup(6)).fit()
    objective = Bad()
    trainer_of(to_bitnet(student()), BitNetWarmup(5), objective=objective).fit()
    assert objective.calls[-2:] == [0.8, 1.0]


def test_copies_have_a_strength_of_their_own():
    one = to_bitnet(student())
    other = copy.deepcopy(one)
    for module in one.modules():
        if isinstance(module, BitLinear):
            module.strength = 0.5
    assert strengths(other) == 1.0
