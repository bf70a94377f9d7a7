"`modernllm solve`: candidates, votes, scores, the answer and its cost, on a model that knows one problem by heart."

import sys
import types

import pytest
import torch

from modernllm.cli.app import main
from modernllm.cli.solve import prompt_of
from modernllm.data.tokenizers import train_bpe
from modernllm.models import ModernDecoderLM, ModernLLMConfig, save_model

PROBLEM = "Ann has 3 boxes of 12 eggs. How many eggs are that?"
SOLUTION = "Ann has <<3*12=35>>35 eggs.\n#### 35"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_bpe([PROBLEM + SOLUTION] * 9, 285)
    prompt, _ = prompt_of(tokenizer, PROBLEM, "")
    tokens = torch.tensor([tokenizer(prompt + SOLUTION)["input_ids"] + [tokenizer.eos_token_id]])
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(vocab_size=285, hidden_size=64, num_hidden_layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, model, tokenizer)
    return str(folder)


@pytest.fixture
def verifier(monkeypatch):
    "Stands for `alignment.verifier`; scores by the length of the answer."
    asked = []

    class Verifier:
        @classmethod
        def load(cls, folder):
            asked.append(folder)
            return cls()

        def scores(self, pairs):
            asked.extend(pairs)
            return [1 / len(answer) for _, answer in pairs]

        def flops(self, pairs):
            return [1e12] * len(pairs)

    fake = types.SimpleNamespace(load_verifier=Verifier.load)
    monkeypatch.setitem(sys.modules, "modernllm.alignment.likelihood_verifier", fake)
    return asked


def solved(capsys, *words) -> str:
    assert main(["solve", *words]) == 0
    return capsys.readouterr().out


def test_what_is_shown(folder, capsys):
    line = [folder, "--problem", PROBLEM, "--instruction", "", "--max-new-tokens", "40"]
    out = solved(capsys, *line, "--samples", "2", "--temperature", "0.1")
    assert out.count("candidate ") == out.count("<<3*12=35>>35") == 2 and "score" not in out and "computed" not in out
    assert "2 of 2 votes" in out and "answer: 35   confidence 1.000" in out and "cost: 2 answers" in out
    assert out == solved(capsys, *line, "--samples", "2", "--temperature", "0.1")
    greedy = solved(capsys, *line, "--samples", "1", "--temperature", "0", "--calculator")
    assert "<<3*12=36>>" in greedy and "1 computed" in greedy


def test_a_verifier_weighs_the_votes(folder, capsys, verifier):
    line = [folder, "--problem", PROBLEM, "--instruction", "", "--samples", "4", "--max-new-tokens", "40", "--temperature", "2"]
    out = solved(capsys, *line, "--verifier", "some/folder")
    assert verifier[0] == "some/folder" and len(verifier) == 5 and all(problem == PROBLEM for problem, _ in verifier[1:])
    assert out.count("; score ") == 4 and " at most" in out and ", of which 4,000.000 for the verifier\n" in out


def test_more_answers_while_unsure(folder, capsys):
    line = [folder, "--problem", PROBLEM, "--instruction", "", "--samples", "2", "--max-new-tokens", "40", "--temperature", "3"]
    first = solved(capsys, *line)
    more = solved(capsys, *line, "--threshold", "1", "--budget", "5")
    assert first.count("candidate ") == 2 and more.count("candidate ") == 5
    assert more.startswith(first[: first.index("candidate 2")])


@pytest.mark.parametrize("words, said", [
    (["--samples", "0"], "--samples"), (["--threshold", "1.5"], "threshold: 1.5 is not allowed, it must be from 0 to 1"),
    (["--threshold", "-0.5"], "threshold: -0.5"), (["--threshold", "nan"], "threshold: nan"),
    (["--temperature", "0"], "--temperature 0 gives 8 equal answers; allowed: --samples 1"),
    (["--budget", "9"], "needed: a --threshold"), (["--budget", "3", "--threshold", "1"], "less than one round of --samples 8"),
    (["--problem", " "], "problem: it is empty"), (["--max-new-tokens", "1000"], "exceed the context"),
])
def test_refused_in_one_line(folder, capsys, words, said):
    assert main(["solve", folder, "--problem", PROBLEM, *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err


def test_a_model_is_needed(capsys):
    assert main(["solve", "gpt9", "--problem", PROBLEM]) == 2
    assert "no model 'gpt9'" in capsys.readouterr().err
