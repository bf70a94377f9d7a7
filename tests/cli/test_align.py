"""`modernllm sft`, `dpo` and `verify`: a chain of trainings on files of one's own; what is refused, in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.alignment.judging import read_judged
from modernllm.cli.align_recipe import COMMANDS, align_fields, make_align_recipe, read_rows, start_model
from modernllm.cli.app import main
from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.adapters import LoraSettings, add_lora, load_model, merge, save_adapter
from modernllm.models.pretrained import find_pretrained
from modernllm.models.sources import save_model

CHATS = [{"prompt": f"Say {k}.", "response": f"It is {k}."} for k in range(30)]
PAIRS = [{"prompt": f"What is {k} + 1?", "chosen": f"It is {k + 1}.", "rejected": f"It is {k}."} for k in range(30)]
SOLVED = [{"question": f"What is {k // 2} + 1?", "answer": f"#### {k // 2 + k % 2}", "right": bool(k % 2)} for k in range(30)]
QUICK = ["max_steps=2", "eval_every=2", "batch_size=4", "precision=fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    for name, rows in (("chats", CHATS), ("pairs", PAIRS), ("solved", SOLVED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_bpe([f"{row['prompt']} {row['response']}" for row in CHATS], 266)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=96, **shape)
    save_model(folder / "base", LlamaForCausalLM(config), tokenizer)
    return folder


def line(base, command, data, model, *words):
    return [command, f"data={base / data}.jsonl", f"model={base / model}", *QUICK, *words, "--out", str(base / command)]


def test_a_chain_of_trainings_ends_in_a_verifier_that_solve_reads(base, capsys):
    assert main(line(base, "sft", "chats", "base", "lora_r=2")) == 0
    assert main(line(base, "dpo", "pairs", "sft", "lora_r=2")) == 0
    assert main(line(base, "verify", "solved", "dpo", "kind=classifier")) == 0
    said = capsys.readouterr().out
    assert (base / "verify/calibration.png").exists()
    assert "0.6931 before" in said and "auroc" in said  # DPO starts at ln 2
    assert not (base / "dpo/model/adapter_config.json").exists()  # a whole model
    before, after = (load_file(base / name / "model.safetensors") for name in ("base", "sft/model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    words = ["--samples", "2", "--max-new-tokens", "4", "--instruction", "", "--verifier", str(base / "verify")]
    assert main(["solve", str(base / "dpo"), "--problem", "What is 1 + 1?", *words]) == 0


def test_a_likelihood_verifier_is_read_by_solve_and_takes_no_settings_of_a_training(base, capsys):
    words = ["verify", f"data={base / 'solved.jsonl'}", f"model={base / 'base'}"]
    assert main([*words, "--out", str(base / "likelihood")]) == 0
    assert "auroc" in capsys.readouterr().out and (base / "likelihood/calibration.png").exists()
    more = ["--samples", "2", "--max-new-tokens", "4", "--instruction", "", "--verifier", str(base / "likelihood")]
    assert main(["solve", str(base / "base"), "--problem", "What is 1 + 1?", *more]) == 0
    assert main([*words, "max_steps=2"]) == 2
    assert "max_steps: a likelihood verifier is fitted, not trained" in capsys.readouterr().err


def test_the_same_line_again_trains_nothing_and_another_is_refused(base, capsys):
    assert main(line(base, "sft", "chats", "base", "lora_r=2")) == 0
    weights = (base / "sft/model/model.safetensors").read_bytes()
    assert main(line(base, "sft", "chats", "base", "lora_r=2")) == 0
    assert (base / "sft/model/model.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert main(line(base, "sft", "chats", "base", "lora_r=4")) == 2
    assert "lora_r" in capsys.readouterr().err


def test_a_training_on_preferences_starts_from_the_merged_adapter(base):
    weights = find_pretrained(str(base / "base"))
    model, tokenizer, _ = load_model(weights, "causal")
    torch.manual_seed(1)
    model = add_lora(model, LoraSettings(r=2, targets=("all",)))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    save_adapter(base / "adapter", model, weights)
    values = {"data": str(base / "pairs.jsonl"), "lora_r": 0}
    plain, adapted = (make_align_recipe("dpo", values | {"model": str(base / name)}) for name in ("base", "adapter"))
    assert plain.key != adapted.key and "adapter" in adapted.contents
    (start, _), _ = start_model(adapted)
    expected = merge(model).state_dict()
    assert not hasattr(start, "peft_config") and all(p.requires_grad for p in start.parameters())
    assert all(torch.allclose(value, expected[name]) for name, value in start.state_dict().items())
    with pytest.raises(InputError, match="is an adapter; allowed: a whole model"):
        make_align_recipe("verify", {"data": "gsm8k", "model": str(base / "adapter")})


def test_a_model_without_a_chat_template_is_named(base, tmp_path, capsys):
    model, tokenizer, _ = load_model(find_pretrained(str(base / "base")), "causal")
    tokenizer.chat_template = None
    save_model(base / "plain", model, tokenizer)
    for command, data in (("sft", "chats"), ("dpo", "pairs")):
        assert main([*line(base, command, data, "plain"), "--out", str(tmp_path / command)]) == 2
        assert f"model {base / 'plain'}: has no chat template" in capsys.readouterr().err
    assert main(["verify", "data=word_problems", f"model={base / 'plain'}"]) == 2
    assert "has no chat template" in capsys.readouterr().err


def test_no_problem_of_the_verifier_is_in_training_and_validation(base):
    recipe = make_align_recipe("verify", {"data": str(base / "solved.jsonl"), "model": str(base / "base")})
    train, validation = read_rows(recipe)
    assert not {row["question"] for row in train.rows} & {row["question"] for row in validation.rows}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_missing_or_unknown_is_named(command, base, capsys):
    data, model = f"data={base / 'nowhere.jsonl'}", f"model={base / 'base'}"
    for words, said in (
        ([], "data is missing"), ([data, model], "there is no such file"), ([data, "lora_rank=8"], "did you mean 'lora_r'"),
        (["data=sst2", model], "sst2"), ([data, "model=nowhere"], "nowhere"), ([data, model, "lora_r=-1"], "lora_r"),
    ):
        assert main([command, *words, *QUICK, *(["kind=classifier"] if command == "verify" else [])]) == 2
        assert said in capsys.readouterr().err, words


@pytest.mark.parametrize("row, said", [
    ({"question": "1?", "answer": "#### 1"}, "no column 'right'"),
    ({"question": "1?", "answer": "#### 1", "right": "yes"}, "right is 'yes'; allowed: true or false"),
    ({"question": "", "answer": "#### 1", "right": True}, "question is ''"),
])
def test_a_broken_line_of_solutions_is_named(row, said, tmp_path):
    path = tmp_path / "solved.jsonl"
    path.write_text(json.dumps(SOLVED[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"solved\.jsonl:2: .*{said}"):
        read_judged(path)


def test_solutions_of_one_kind_train_no_verifier(base, tmp_path, capsys):
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps({**row, "right": True}) + "\n" for row in SOLVED))
    assert main(["verify", f"data={tmp_path / 'solved.jsonl'}", f"model={base / 'base'}"]) == 2
    assert "are right" in capsys.readouterr().err


def test_fields_have_one_owner_each():
    for command in COMMANDS:
        table = align_fields(command)
        assert {owner for owner, _ in table.values()} == {"data", command, "training"}
