"""SmallBench: the six sets as a mirror holds them, which rows are asked, what is refused."""

import gzip
import hashlib
import json
from unittest.mock import Mock

import pytest
import torch

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.evaluation.choices import Question, answer_choices
from modernllm.evaluation.smallbench import (
    CHOICE_SETS,
    SETS,
    STAND_IN,
    mean_score,
    questions_of,
    read_set,
    score_set,
    smallbench,
    texts_of,
)
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM

ANIMALS = ("cat", "dog", "fox", "owl", "hen", "bat")


def plain(asked):
    return [{"query": asked.format(name), "choices": [f"a {name}", "a stone", "water"], "gold": k % 3}
            for k, name in enumerate(ANIMALS)]


ROWS = {
    "arc_easy_test": plain("Question: What is a {}?"),
    "openbookqa_test": plain("A {} is"),
    "copa_validation": plain("The {} ran, therefore"),
    "commonsense_qa_validation": [
        {"question": {"stem": f"Where is the {name}?", "question_concept": name,
                      "choices": [{"label": label, "text": f"place {label}"} for label in "ABCDE"]}, "answerKey": "ABCDE"[k % 5]}
        for k, name in enumerate(ANIMALS)],
    "piqa_validation": [{"goal": f"Feed a {name}", "sol1": "with bread", "sol2": "with sand {}", "label": k % 2}
                        for k, name in enumerate(ANIMALS)],
    "lambada_openai_test": [{"text": f"They saw the {name}.\n\nIt was a {name}"} for name in ANIMALS],
}  # fmt: skip


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    "A data mirror that holds the six sets, named by MODERNLLM_DATA."
    folder, files = tmp_path / "mirror", []
    (folder / "smallbench").mkdir(parents=True)
    for name, rows in ROWS.items():
        path = f"smallbench/{name}.jsonl.gz"
        packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)
        (folder / path).write_bytes(packed)
        files.append({"path": path, "sha256": hashlib.sha256(packed).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"datasets": [{"name": "smallbench", "files": files}]}))
    monkeypatch.setenv("MODERNLLM_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["They saw the cat. It was a cat. Question: What is a dog? Answer: a stone or water"] * 30, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    return ModernDecoderLM(ModernLLMConfig(vocab_size=len(tokenizer), **shape)).eval()


def test_every_set_is_asked_in_its_form(mirror):
    asked = {name: questions_of(read_set(name, None))[1] for name in CHOICE_SETS}
    assert asked["arc_easy"] == Question("Question: What is a dog?\nAnswer:", ("a dog", "a stone", "water"), 1)
    assert asked["openbookqa"].prompt == "A dog is" and asked["copa"].prompt == "The dog ran, therefore"
    assert asked["commonsense_qa"] == Question("Question: Where is the dog?\nAnswer:", tuple(f"place {x}" for x in "ABCDE"), 1)
    assert asked["piqa"] == Question("Question: Feed a dog\nAnswer:", ("with bread", "with sand {}"), 1)
    texts = {name: texts_of(read_set(name, None))[1] for name in SETS}
    assert texts["arc_easy"] == "What is a dog? a stone" and texts["lambada"] == "They saw the dog.\n\nIt was a dog"


def test_which_rows_are_asked_depends_on_the_set_alone(mirror):
    few = {name: read_set(name, 3) for name in SETS}
    assert all(few[name].rows == read_set(name, 3).rows and len(few[name]) == 3 for name in SETS)
    chosen = {name: [ROWS[f"{name}_test"].index(row) for row in few[name].rows] for name in ("arc_easy", "openbookqa")}
    assert chosen["arc_easy"] != chosen["openbookqa"] and "3 of 6 rows" in few["copa"].note
    assert len(read_set("copa", 500)) == len(read_set("copa", None)) == 6


def test_scores_are_those_of_choices_with_chance_beside_them(mirror, model, tokenizer):
    bench = smallbench(model, tokenizer, 4)
    table = bench.table().set_index(["set", "measure"])
    assert [table.loc[(name, "acc_norm"), "chance"] for name in CHOICE_SETS] == pytest.approx([1 / 3] * 3 + [0.2, 0.5])
    shares = table.drop(("lambada", "perplexity"))
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all() and shares["chance"].notna().all()
    direct = {row["measure"]: row["share"] for row in answer_choices(model, tokenizer, questions_of(read_set("piqa", 4))).rows()}
    assert {m: table.loc[("piqa", m), "value"] for m in direct} == direct
    accuracies = [table.loc[(name, "accuracy" if name == "lambada" else "acc_norm"), "value"] for name in SETS]
    mean = table.loc[("mean", "accuracy")]
    assert mean["value"] == pytest.approx(sum(accuracies) / 6) and mean["chance"] == pytest.approx((1 + 0.2 + 0.5) / 6)
    assert mean["n"] == 24 and len(bench.provenance()) == 6
    for scores in bench.sets:
        assert [e.right for e in scores.examples].count(True) / 4 == scores.rows()[0]["value"]
    assert bench.rows() == smallbench(model, tokenizer, 4).rows()


def test_a_record_holds_every_number_and_what_was_read(mirror, model, tokenizer):
    run, bench = Mock(), smallbench(model, tokenizer, 2)
    bench.record_into(run)
    kept = {call.args[0]: (call.args[1], call.kwargs) for call in run.metric.call_args_list}
    assert kept["smallbench_piqa_acc_norm_chance"][0] == 0.5 and kept["smallbench_mean_accuracy"][1]["n_items"] == 12
    assert kept["smallbench_lambada_perplexity"][1]["unit"] == "perplexity" and len(kept) == 4 * 12 + 1
    run.read.assert_called_once_with(bench)


@pytest.mark.parametrize("name", SETS)
def test_an_altered_file_is_named_with_both_hashes(mirror, model, tokenizer, name):
    (path,) = mirror.glob(f"smallbench/{name}*")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[:-1]).encode(), mtime=0))
    for stand_in in (False, True):  # nothing stands in for what is there and wrong
        with pytest.raises(InputError, match=f"{path.name}.*expected SHA-256 [0-9a-f]{{64}}, found [0-9a-f]{{64}}") as error:
            score_set(model, tokenizer, name, 2, stand_in)
        assert "\n" not in str(error.value)


def test_stand_ins_only_where_asked_for(model, tokenizer):
    with pytest.raises(InputError, match="'arc_easy'.*cannot be had"):
        smallbench(model, tokenizer, 2)
    bench = smallbench(model, tokenizer, 5, stand_in=True)
    assert {entry["name"] for entry in bench.provenance()} == {STAND_IN}
    assert [entry["note"].split(";")[0] for entry in bench.provenance()] == [f"stand-in for {name}" for name in SETS]


def test_the_mean_of_equal_sets_is_narrower():
    one = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.5, "n": 100}
    four = mean_score([one] * 4)
    assert four["value"] == 0.5 and four["high"] - four["low"] == pytest.approx(0.1) and four["n"] == 400


@pytest.mark.parametrize("given, said", [
    ({"rows": 0}, "rows is 0; allowed: a whole number, 1 or more"), ({"rows": 2.5}, "rows is 2.5"),
    ({"sets": ()}, "sets: none given"),
    ({"sets": ("arc_hard",)}, "unknown set 'arc_hard'; did you mean 'arc_easy'"),
])  # fmt: skip
def test_bad_input(model, tokenizer, given, said):
    with pytest.raises(InputError, match=said):
        smallbench(model, tokenizer, **{"stand_in": True, **given})
