"""`modernllm rewrite train`: from rows to one folder with model, recipe and scores; what is refused, in one line."""

import json

import pytest
import yaml

from modernllm.cli.app import main
from modernllm.data.generated_rewrites import generated_rewrites
from modernllm.data.tasks import shared_tokenizer
from modernllm.data.tokenizers import with_tokens
from modernllm.experiments.span_pretraining import SENTINELS, new_t5
from modernllm.models.sources import save_model

QUICK = ["max_steps=2", "batch_size=4", "precision=fp32", "train_rows=8", "validation_rows=4", "answers=2", "test_rows=4"]
MINI = ["mini_tokens=400", "mini_d_model=32", "mini_layers=1", "mini_steps=2", "mini_batch_size=2", "mini_block_size=32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewrite")
    rows = generated_rewrites("train")[:60]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["\n".join([*row["history"], row["query"], row["rewrite"]]) for row in rows]
    (folder / "text.txt").write_text("\n\n\n".join(texts))
    tokenizer = with_tokens(shared_tokenizer([texts], 400), list(SENTINELS))
    save_model(folder / "base", new_t5(tokenizer, 32, 1), tokenizer)
    return folder


def line(base, *more, model="base"):
    given = ["--set", str(base / "mine.jsonl"), "--model", str(base / model), "--environment", "laptop"]
    return ["rewrite", "train", *given, *QUICK, *more]


def test_one_folder_with_model_recipe_and_scores(base, capsys):
    out = base / "out"
    assert main(line(base, "--out", str(out))) == 0
    said = capsys.readouterr().out
    listed = {row.split()[0] for row in said[: said.index("eval_loss")].splitlines() if row}
    assert listed >= {"batch_size", "optimizer", "lora_alpha", "test_rows"} and not listed & {"mini_steps"}
    assert said.index("batch_size") < said.index("eval_loss") < said.index("eval_rouge_l") and "poor; the copied query" in said
    files = {"model.safetensors", "tokenizer.json", "recipe.yaml", "record.json"}
    assert files <= {path.name for path in (out / "model").iterdir()}
    recipe = yaml.safe_load((out / "model/recipe.yaml").read_text())
    assert (recipe["task"], recipe["form"], recipe["max_steps"]) == ("query_rewriting", "auto", 2) and "max_epochs" not in recipe
    found = json.loads((out / "scores/eval.json").read_text())
    assert found["rows"] == 4 and found["split"] == "test" and f"{found['eval_loss']:.4f}" in said
    assert len((out / "scores/query_rewriting.jsonl").read_text().splitlines()) == 4
    assert main(line(base, "--out", str(out))) == 0  # the same line again
    assert main(line(base, "--out", str(out), "seed=1")) == 2 and "other settings (seed)" in capsys.readouterr().err


def test_the_small_t5_is_made_once(base, capsys, monkeypatch):
    monkeypatch.setenv("MODERNLLM_RUNS", str(base / "runs"))
    given = ["rewrite", "train", "--set", str(base / "mine.jsonl"), *QUICK, *MINI, f"mini_text={base / 'text.txt'}"]
    assert main([*given, "--out", str(base / "mini")]) == 0
    (made,) = (base / "runs/rewrite").glob("t5-mini-*")
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert main([*given, "--out", str(base / "mini2")]) == 0
    assert (made / "model.safetensors").stat().st_mtime_ns == before
    assert "t5-mini, pre-training" in capsys.readouterr().out


def test_a_bad_place_is_found_before_the_pretraining(base, capsys):
    given = ["rewrite", "train", "--set", str(base / "mine.jsonl"), *QUICK, "mini_steps=100000", "--out"]
    for place, status, said in ((base, 2, "is not empty and holds no training run"), ("/proc/x", 1, "/proc/x")):
        assert main([*given, str(place)]) == status and said in capsys.readouterr().err


@pytest.mark.parametrize("more, said", [
    (["--set", "half"], "query rewriting has no set 'half'"),
    (["--model", "t5-minni"], "no model 't5-minni'"),
    (["batchsize=2"], "no setting 'batchsize'; did you mean 'batch_size'"),
    (["data=x"], "no setting 'data'"),
    (["mini_d_model=40"], "mini_d_model is 40; allowed: a multiple of 32"),
    (["--environment", "phone"], "'phone' is not one of"),
    (["learning_rate=-1"], "learning_rate"),
])
def test_bad_input_is_one_line(base, capsys, more, said):
    assert main(line(base, *more)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
