"""Prompts and few-shot answers: balanced shots, stated cuts, labels by log-probability."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation.choices import Question, answer_choices
from modernllm.hf import prompting
from modernllm.hf.prompting import classify, draw_shots, solve
from modernllm.data.templates import TEMPLATES, fit_prompt, write_prompt
from modernllm.models.generation import Continuation

SST2 = TEMPLATES["sst2"]
ROWS = [{"sentence": f"a film of {i} parts", "label": int(i % 3 == 0)} for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe([SST2.plain(row) + " " + SST2.answer(row) for row in ROWS] * 5, 295)
    made.chat_template = None
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id, **shape)
    return LlamaForCausalLM(config).eval()


@given(st.integers(0, 20), st.integers(0, 1000))
def test_shots_are_balanced_and_follow_the_seed(k, seed):
    shots = draw_shots(SST2, ROWS, k, seed)
    ones = sum(shot["label"] for shot in shots)
    assert len(shots) == k and abs(k - 2 * ones) <= 1
    assert len({shot["sentence"] for shot in shots}) == k and draw_shots(SST2, ROWS, k, seed) == shots


def test_neither_label_always_has_the_odd_shot_or_the_last_word():
    drawn = [draw_shots(SST2, ROWS, 3, seed) for seed in range(40)]
    assert {sum(shot["label"] for shot in shots) for shots in drawn} == {1, 2}
    assert {shots[-1]["label"] for shots in drawn} == {0, 1}


@pytest.mark.parametrize("k", [-1, 41, 30])
def test_shots_that_cannot_be_drawn(k):
    with pytest.raises(InputError, match="shots"):
        draw_shots(SST2, ROWS, k, 0)


def test_a_label_outside_the_set_is_named():
    with pytest.raises(InputError, match="label is 2; allowed: 0 to 1"):
        SST2.answer({"label": 2})


def test_shots_go_before_words_and_the_question_stays(tokenizer):
    row, shots = {"sentence": "first words go and the last words stay", "label": 1}, ROWS[:3]
    whole = len(tokenizer(SST2.plain(row, shots))["input_ids"])
    sizes = []
    for room in range(whole, 20, -1):
        prompt, joint, cut = fit_prompt(tokenizer, SST2, row, shots, room)
        assert len(tokenizer(prompt)["input_ids"]) <= room and cut == (room < whole) and joint == " "
        assert prompt.endswith("stay\nSentiment:")
        assert prompt.count("Review:") == 1 or "first words go" in prompt
        sizes.append(prompt.count("Review:"))
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {4, 3, 2, 1}
    with pytest.raises(InputError, match="no room"):
        fit_prompt(tokenizer, SST2, row, shots, 2)


def test_a_chat_model_is_asked_in_its_own_format(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    try:
        prompt, joint = write_prompt(tokenizer, SST2, ROWS[0], ROWS[1:2])
    finally:
        tokenizer.chat_template = None
    assert prompt.count("[user]") == prompt.count("[assistant]") == 2 and "[assistant]negative[user]" in prompt and joint == ""


def test_labels_are_choices(model, tokenizer):
    found = classify(model, tokenizer, SST2, ROWS[:5], shots=ROWS[5:7])
    questions = [Question(SST2.plain(row, ROWS[5:7]), SST2.label_words, row["label"]) for row in ROWS[:5]]
    scores = answer_choices(model, tokenizer, questions)
    assert found.labels == scores.chosen() and found.cut == 0
    for probabilities, sums in zip(found.probabilities, scores.logprobs):
        assert probabilities == pytest.approx(torch.tensor(sums, dtype=torch.float64).softmax(0).tolist())


def test_calibrated_an_input_that_says_nothing_gets_even_odds(model, tokenizer):
    found = classify(model, tokenizer, SST2, [{"sentence": "N/A", "label": 0}], calibrate=True)
    assert found.probabilities[0] == pytest.approx([0.5, 0.5])


def test_answers_do_not_depend_on_the_batch(model, tokenizer):
    one = solve(model, tokenizer, SST2, ROWS[:4], max_new_tokens=5, batch_size=1)
    assert one == solve(model, tokenizer, SST2, ROWS[:4], max_new_tokens=5, batch_size=3) and len(one.texts) == 4


def test_an_answer_ends_where_the_model_invents_the_next_example(monkeypatch):
    said = [Continuation(" positive\nReview: more\nSentiment: no", ended=False, ids=tuple(range(17)), prompt_tokens=9)]
    monkeypatch.setattr(prompting, "continue_prompts", lambda *_, **__: said)
    monkeypatch.setattr(prompting, "fit_prompt", lambda *_: ("", "", False))
    found = solve(torch.nn.Module.__new__(_Configured), None, SST2, ROWS[:1], max_new_tokens=5)
    assert (found.texts, found.unfinished, found.cut) == (["positive"], [False], 0)


class _Configured(torch.nn.Module):
    config = LlamaConfig()


def test_texts_cannot_be_classified(model, tokenizer):
    with pytest.raises(InputError, match="no label words"):
        classify(model, tokenizer, TEMPLATES["samsum"], [{"dialogue": "a: b", "summary": "c"}])
