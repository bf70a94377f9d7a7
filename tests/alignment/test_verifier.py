"Verifier: labels, balance, split by problem, training, scores, saving, and what is refused."

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from modernllm.alignment.judging import JudgedRows, balance, by_problem, judge, label_answers, split_problems
from modernllm.alignment.verifier import (
    Verifier,
    VerifierScores,
    VerifierSettings,
    evaluate_verifier,
    new_verifier,
    pair_ids,
    train_verifier,
)
from modernllm.core.config import InputError
from modernllm.data.sources import SplitOrigin
from modernllm.data.tokenizers import train_bpe
from modernllm.models import ModernDecoderLM, ModernLLMConfig
from modernllm.models.sources import save_model

ORIGIN = SplitOrigin("sums", "train")
JUDGED = JudgedRows("larger", "train", rows=[
    {"question": f"Which is larger, {a} or {b}?", "answer": f"It is {c}.\n#### {c}", "right": c == max(a, b)}
    for a in range(9) for b in range(9) if a != b for c in (a, b)
])
PAIRS = JUDGED.pairs


def drawn(*texts):
    return [SimpleNamespace(text=text) for text in texts]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([" ".join(pair) for pair in PAIRS] + ["Question: Answer: "], 270)


@pytest.fixture(scope="module")
def lm(tmp_path_factory, tokenizer):
    "Folders of two untrained language models: ours and Llama's."
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "max_position_embeddings": 48}
    torch.manual_seed(0)
    save_model(folder / "ours", ModernDecoderLM(ModernLLMConfig(**shape, pad_token_id=tokenizer.pad_token_id)), tokenizer)
    save_model(folder / "llama", LlamaForCausalLM(LlamaConfig(**shape)), tokenizer)  # which knows no padding token
    return folder


def problems(*sums):
    return [{"question": f"{a} + {b}?", "answer": f"#### {a + b}"} for a, b in sums]


def test_labels_are_exact_matches_of_different_solutions():
    judged = label_answers(problems((1, 2)), [drawn("#### 3", "#### 3", "3", "#### 4")], ORIGIN)
    assert [(row["answer"], row["right"]) for row in judged.rows] == [("#### 3", True), ("3", False), ("#### 4", False)]


def test_each_problem_is_balanced():
    rows = problems((1, 2), (2, 2), (5, 5))
    many = [drawn("#### 3", "so #### 3", "#### 4"), drawn("#### 4"), drawn("#### 1", "#### 2", "#### 10", "#### 3")]
    judged = judge(rows, many, ORIGIN)
    assert set(by_problem(judged)) == {"1 + 2?", "5 + 5?"}
    for numbers in by_problem(judged).values():
        assert sum(judged.rows[k]["right"] for k in numbers) * 2 == len(numbers)
    assert judged.fingerprint == judge(rows, many, ORIGIN).fingerprint != judge(rows[:1], many[:1], ORIGIN).fingerprint
    assert "4 of 8 solutions" in judged.note


@pytest.mark.parametrize("texts, message", [
    (["#### 3", "so #### 3"], "all 2 solutions are right"),
    (["#### 4", "5"], "all 2 solutions are wrong"),
])
def test_labels_of_one_kind_are_refused(texts, message):
    with pytest.raises(InputError, match=message):
        judge(problems((1, 2)), [drawn(*texts)], ORIGIN)


def test_no_problem_with_both_kinds_is_refused():
    with pytest.raises(InputError, match="no problem has both kinds"):
        judge(problems((1, 2), (3, 3)), [drawn("#### 3"), drawn("#### 3")], ORIGIN)


def test_candidates_of_other_problems_are_refused():
    with pytest.raises(InputError, match="2 lists for 1 problems"):
        judge(problems((1, 2)), [drawn("#### 3"), drawn("#### 3")], ORIGIN)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_no_problem_is_on_two_sides(share):
    train, validation = split_problems(JUDGED, share, seed=1)
    assert not set(by_problem(train)) & set(by_problem(validation))
    assert len(train) + len(validation) == len(JUDGED) and train.fingerprint != validation.fingerprint
    assert abs(len(validation) / len(JUDGED) - share) < 0.02


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match="share"):
        split_problems(JUDGED, share)


@pytest.mark.parametrize("kind", ["ours", "llama"])
def test_batched_scores_equal_single_ones(lm, kind):
    verifier = new_verifier(lm / kind)
    pairs = [PAIRS[0], ("Why?", "No."), PAIRS[5], ("x" * 300, "#### 1"), ("", "")]
    together = verifier.scores(pairs, batch_tokens=200)
    assert together == pytest.approx([verifier.score(*pair) for pair in pairs], abs=1e-5)
    assert all(0 <= score <= 1 for score in together) and verifier.scores([]) == []


def test_score_starts_from_the_weights_of_the_language_model(lm):
    from modernllm.models.sources import load_pretrained

    verifier, (base, _) = new_verifier(lm / "ours"), load_pretrained(lm / "ours")
    backbone = verifier.model.base_model.state_dict()
    assert all(torch.equal(value, backbone[name]) for name, value in base.base_model.state_dict().items())
    same, other = (new_verifier(lm / "ours", seed=seed).score(*PAIRS[0]) for seed in (0, 1))  # of the head
    assert same == verifier.score(*PAIRS[0]) != other


def test_a_pair_too_long_loses_its_beginning(tokenizer):
    short, cut = pair_ids(tokenizer, [("ab", "#### 1"), ("x" * 100 + "ab", "#### 1")], 10)
    assert len(cut) == 10 and short[-4:] == cut[-4:]


def test_control_tokens_in_a_text_are_text(tokenizer):
    ids = pair_ids(tokenizer, [(tokenizer.eos_token * 3, tokenizer.pad_token)], None)[0]
    frame = pair_ids(tokenizer, [("a", "b")], None)[0]
    special = set(tokenizer.all_special_ids)
    assert sum(i in special for i in ids) == sum(i in special for i in frame)


@pytest.fixture(scope="module")
def trained(lm, tmp_path_factory):
    train, validation = split_problems(JUDGED, 0.2)
    verifier, settings = new_verifier(lm / "ours"), VerifierSettings(batch_size=16)
    config = settings.training(max_steps=80, learning_rate=5e-3, eval_every=40, precision="fp32")
    tuned = train_verifier(verifier, train, validation, settings, config, folder=tmp_path_factory.mktemp("run"))
    return verifier, tuned, validation


def test_it_learns_and_keeps_its_best_weights(trained):
    verifier, tuned, validation = trained
    assert tuned.best["loss"] < tuned.first["loss"] and tuned.best["auroc"] > 0.8
    metrics = evaluate_verifier(verifier, validation).metrics
    assert metrics == pytest.approx({name: tuned.best[name] for name in metrics})
    assert {"loss", "accuracy", "auroc", "ece"} == set(metrics)


def test_saved_and_loaded_it_scores_the_same(trained, tmp_path):
    verifier, _, validation = trained
    verifier.save(tmp_path / "verifier")
    again = Verifier.load(tmp_path / "verifier")
    assert again.scores(validation.pairs) == verifier.scores(validation.pairs)
    assert not any(p.requires_grad for p in again.model.parameters())
    further = new_verifier(tmp_path / "verifier", seed=1)  # goes on from its head
    assert further.scores(validation.pairs) == verifier.scores(validation.pairs)


def test_a_language_model_is_no_verifier(lm, tokenizer):
    from modernllm.models.sources import load_pretrained

    with pytest.raises(InputError, match="is a causal model; needed: a classifier with the labels wrong, right"):
        Verifier.load(lm / "ours")
    with pytest.raises(InputError, match="ModernDecoderLM is not one"):
        Verifier(*load_pretrained(lm / "ours"))
    with pytest.raises(InputError, match="is not one"):  # a classifier for something else
        Verifier(*load_pretrained(lm / "ours", "classification", num_labels=2))


def test_an_encoder_decoder_is_refused(tmp_path, tokenizer):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    save_model(tmp_path / "t5", T5ForConditionalGeneration(config), tokenizer)
    with pytest.raises(InputError, match="seq2seq model; needed: a causal model"):
        new_verifier(tmp_path / "t5")


def test_an_adapter_is_trained_scored_and_saved_when_merged(lm, tmp_path):
    from modernllm.hf.adapters import LoraSettings, add_lora, merge

    verifier = new_verifier(lm / "ours")
    adapted = Verifier(add_lora(verifier.model, LoraSettings(), "SEQ_CLS"), verifier.tokenizer)
    settings, sides = VerifierSettings(), split_problems(JUDGED, 0.2)
    train_verifier(adapted, *sides, settings, settings.training(max_steps=2, learning_rate=1e-2, precision="fp32"))
    with pytest.raises(InputError, match="merge it first"):
        adapted.save(tmp_path / "verifier")
    scores = adapted.scores(PAIRS[:6])
    Verifier(merge(adapted.model), verifier.tokenizer).save(tmp_path / "verifier")
    assert Verifier.load(tmp_path / "verifier").scores(PAIRS[:6]) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("right", [True, False])
def test_training_on_labels_of_one_kind_is_refused(lm, right):
    train, validation = split_problems(JUDGED, 0.2)
    one = replace(train, rows=[{**row, "right": right} for row in train.rows])
    settings = VerifierSettings()
    for sides in ((one, validation), (validation, one)):
        with pytest.raises(InputError, match=f"labels: all {len(one)} .* are {'right' if right else 'wrong'}"):
            train_verifier(new_verifier(lm / "ours"), *sides, settings, settings.training())
    with pytest.raises(InputError, match="labels: all"):
        evaluate_verifier(new_verifier(lm / "ours"), one)


def test_training_on_problems_of_validation_is_refused(lm):
    settings = VerifierSettings()
    with pytest.raises(InputError, match="72 problems are in train too"):
        train_verifier(new_verifier(lm / "ours"), JUDGED, JUDGED, settings, settings.training())


def test_scores_without_a_sense_are_refused():
    for labels, scores, message in (([True], [0.5, 0.4], "1 labels and 2 scores"), ([True, False], [0.5, 1.5], "1.5 is given"),
                                    ([], [], "0 labels"), ([True, True], [0.5, 0.4], "all 2 are right")):
        with pytest.raises(InputError, match=message):
            VerifierScores(labels, scores)


def test_balancing_twice_changes_nothing():
    assert balance(JUDGED).rows == balance(balance(JUDGED)).rows
