"""`modernllm finetune` and `evaluate --task`: from a file of one's own to saved mistakes; what is refused, in one line."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.cli.app import main
from modernllm.cli.finetune import words_of
from modernllm.cli.finetune_recipe import FinetuneConfig, finetune_fields
from modernllm.cli.recipe import by_owner
from modernllm.core.config import Config
from modernllm.core.telemetry import Telemetry
from modernllm.data.tokenizers import train_bpe
from modernllm.hf.task_training import Tuning
from modernllm.hf.tasks import find_task
from modernllm.models.sources import save_model
from modernllm.training.config import TrainConfig

WORDS = {"bad": ["dull", "poor", "grim"], "good": ["fine", "warm", "great"]}
ROWS = [{"text": f"a {WORDS[label][i % 3]} film, number {i}", "label": label} for i in range(40) for label in WORDS]
QUICK = ["form=plain", "lora_r=2", "max_steps=2", "batch_size=4", "precision=fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = train_bpe([f"Text: {row['text']}\nLabel: {row['label']}" for row in ROWS], 300)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=64, **shape)
    save_model(folder / "base", LlamaForCausalLM(config), tokenizer)
    return folder


@pytest.fixture
def line(base):
    return ["finetune", f"data={base / 'mine.jsonl'}", "input=text", "target=label", f"model={base / 'base'}", *QUICK]


@pytest.fixture(scope="module")
def tuned(base):
    out = base / "tuned"
    line = ["finetune", f"data={base / 'mine.jsonl'}", "input=text", "target=label", f"model={base / 'base'}", *QUICK]
    assert main([*line, "--out", str(out)]) == 0
    return out


def test_an_adapter_is_trained_recorded_and_evaluated(tuned, base, tmp_path, capsys):
    record = json.loads((tuned / "model/record.json").read_text())
    assert record["models"][0]["source"] == "folder" and {entry["split"] for entry in record["data"]} == {"train", "validation"}
    assert not (tuned / "model/model.safetensors").exists() and (tuned / "model/adapter_model.safetensors").exists()
    task = f"{base / 'mine.jsonl'}:text:label"
    assert main(["evaluate", str(tuned), "--task", task, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "95 %" in said and "rows of validation" in said and "quantisation none" in said
    examples, mistakes = ((tmp_path / f"mine{kind}.jsonl").read_text().splitlines() for kind in ("", ".mistakes"))
    assert len(mistakes) == sum(not json.loads(example)["right"] for example in examples)
    found = json.loads((tmp_path / "mine.json").read_text())["metrics"][0]
    assert found["value"] == 1 - len(mistakes) / len(examples)


def test_the_model_itself_is_prompted_with_shots(base, capsys, tmp_path):
    task = ["--task", f"{base / 'mine.jsonl'}:text:label", "--form", "plain", "--out", str(tmp_path)]
    assert main(["evaluate", str(base / "base"), *task, "--shots", "9", "--rows", "4", "--calibrate"]) == 0
    said = capsys.readouterr().out
    assert "over 4 rows" in said and "prompts exceed the context: shots are left out from the first on" in said


def test_an_adapter_generates_and_reads_text(tuned, capsys):
    assert main(["generate", str(tuned), "a fine film", "--max-new-tokens", "3"]) == 0
    assert main(["evaluate", str(tuned), "--data", "embedded_docs", "--context", "32"]) == 0
    assert "bits_per_byte" in capsys.readouterr().out


def test_the_same_line_again_goes_on(tuned, line):
    weights = (tuned / "model/adapter_model.safetensors").read_bytes()
    assert main([*line, "--out", str(tuned)]) == 0
    assert (tuned / "model/adapter_model.safetensors").read_bytes() == weights
    assert Telemetry.read(tuned)[-1]["kind"] == "stop"


def test_a_model_is_evaluated_with_the_instruction_and_the_labels_that_it_learnt(base, line, tmp_path, capsys):
    # The order of the labels is not that of the alphabet: a classifier that is asked in another order is wrong everywhere.
    words = ["kind=classification", "form=chat", "labels=good,bad", "instruction=Well?", "max_steps=40", "learning_rate=1e-2"]
    out, task = tmp_path / "out", f"{base / 'mine.jsonl'}:text:label"
    given = [word for word in line if not word.startswith(("form=", "max_steps="))]
    assert main([*given, *words, "lora_targets=q_proj,v_proj", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("held out for validation") == 1
    for folder in (out, out / "model"):
        assert words_of(str(folder), "text", "label") == {"instruction": "Well?", "labels": ["good", "bad"]}
        assert main(["evaluate", str(folder), "--task", task, "--split", "all", "--out", str(tmp_path / "scores")]) == 0
        assert "80 rows of all" in capsys.readouterr().out
        found = json.loads((tmp_path / "scores/mine.json").read_text())["metrics"][0]
        assert found["metric"] == "accuracy" and found["value"] > 0.9
    assert words_of(str(out), "text", "other") == words_of(str(base / "base"), "text", "label") == {}


def test_what_fields_prints_is_what_a_line_takes(capsys):
    assert main(["finetune", "--fields"]) == 0
    shown = [row.split(maxsplit=1)[1] for row in capsys.readouterr().out.splitlines()]
    read = by_owner(Config.parse_assignments(shown), finetune_fields(), "finetune")
    assert FinetuneConfig(**read["task"]) == FinetuneConfig() and Tuning(**read["tuning"]) == Tuning()
    assert "lora_targets=attention" in shown and TrainConfig(**read["training"]) == Tuning().training(find_task("sst2"))


def refused(capsys, *line):
    assert main(list(line)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("words, named", [
    (["task=sst3"], ["task", "sst3", "did you mean 'sst2'"]),
    ([], ["give one of task and data"]),
    (["task=sst2", "data=x.jsonl"], ["give one of task and data"]),
    (["data=nowhere.jsonl"], ["nowhere.jsonl", "no such file"]),
    (["task=sst2", "lora_rank=2"], ["lora_rank", "lora_"]),
    (["task=sst2", "lora_r=-1"], ["lora_r", "-1"]),
    (["task=sst2", "model=smollm"], ["smollm", "smollm2-135m"]),
    (["task=sst2", "kind=masked"], ["kind", "masked", "causal"]),
    (["task=sst2", "form=poem"], ["form", "poem", "chat"]),
    (["task=sst2", "learning_rate=fast"], ["learning_rate", "fast"]),
])  # fmt: skip
def test_a_wrong_line_is_named(capsys, tmp_path, words, named):
    err = refused(capsys, "finetune", *words, "--out", str(tmp_path / "out"))
    assert all(word in err for word in named), err
    assert not (tmp_path / "out").exists()


def test_wrong_columns_labels_and_targets(capsys, base, line, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    without = [word for word in line if not word.startswith(("input=", "lora_r="))]
    err = refused(capsys, *without, "input=sentence", *out)
    assert "mine.jsonl:1: has no column 'sentence' (it has: text, label)" in err
    assert "label is 'good'; allowed labels: bad" in refused(capsys, *line, "labels=[bad]", *out)
    err = refused(capsys, *line, "lora_targets=query", *out)
    assert "no linear layer 'query'" in err and "q_proj" in err
    assert "lora_targets is empty; allowed: attention, all" in refused(capsys, *line, "lora_targets=[]", *out)
    assert "labels is bad,good,bad; allowed: each label once" in refused(capsys, *line, "labels=bad,good,bad", *out)
    assert "input and target are both 'text'" in refused(capsys, *line, "target=text", *out)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_base(capsys, line, tuned, base, tmp_path):
    err = refused(capsys, *line, f"model={tuned}", "--out", str(tmp_path / "out"))
    assert f"model={tuned} is an adapter; allowed: a whole model, such as its base {base / 'base'}" in err


def test_a_hub_that_cannot_be_reached_is_said(capsys, tmp_path):
    err = refused(capsys, "finetune", "task=sst2", "model=org/name", "--out", str(tmp_path / "out"))
    assert "org/name" in err and "HF_HUB_OFFLINE" in err


@pytest.mark.parametrize("words, named", [
    (["--task", "sst3"], ["sst3", "sst2"]),
    (["--task", "mine.jsonl:text"], ["FILE.jsonl:INPUT:TARGET"]),
    (["--task", "sst2", "--split", "held"], ["split", "held"]),
    (["--task", ""], ["task", "sst2"]),
    (["--task", "sst2", "--data", "my.txt"], ["--task", "--data"]),
    (["--task", "samsum", "--calibrate"], ["--calibrate", "labels"]),
    (["--task", "sst2", "--shots", "1", "--split", "train"], ["--shots", "--split train"]),
    (["--shots", "1"], ["--shots", "--task"]),
])  # fmt: skip
def test_a_wrong_evaluation_is_named(capsys, base, words, named):
    err = refused(capsys, "evaluate", str(base / "base"), *words)
    assert all(word in err for word in named), err
