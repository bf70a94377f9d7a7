"`modernllm evaluate --suite`: what is written, what is skipped and why, what is refused."

import json
from functools import partial

import pandas as pd
import pytest
import torch

from modernllm.cli import suite_parts
from modernllm.cli.app import main
from modernllm.cli.suite import chosen_parts, draw_scores, run_suite
from modernllm.cli.suite_parts import parts, preference_scores, read_subject
from modernllm.core.config import InputError
from modernllm.evaluation.analysis import read_examples
from modernllm.evaluation.smallbench import SETS, smallbench
from modernllm.experiments.stand_ins import stand_in_weights
from modernllm.models.sources import load_pretrained, load_tokenizer, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite") / "model"
    stand_in_weights(folder, "a model")
    return folder


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    "The whole suite on two rows of each data set that every machine has."
    out = tmp_path_factory.mktemp("suite") / "out"
    return out, run_suite(read_subject(str(model), rows=2), chosen_parts("all"), out)


def test_every_part_is_run_on_what_is_there_and_the_rest_is_skipped(written):
    out, suite = written
    assert set(suite.scores["part"]) == {"lm", "instructions", "preferences", "maths", "speed"}
    wanted = {"lm, wikitext2_raw", "tasks, sst2", "tasks, samsum", "preferences, hh_helpful_base",
              "preferences, hh_harmless_base", "maths, gsm8k", "smallbench, all"}
    assert set(suite.skipped) == wanted and all("cannot be had" in reason for reason in suite.skipped.values())
    lines = suite.lines()
    assert len(lines) == len(suite.scores) + len(wanted) + len(suite.stand_ins) and lines[-1].startswith("skipped: ")


def test_tables_plots_and_examples_are_written(written):
    out, suite = written
    for part in set(suite.scores["part"]):
        assert (out / f"{part}.png").stat().st_size > 1000 and (out / f"{part}.svg").exists()
        table = pd.read_csv(out / f"{part}.csv")
        assert list(table.columns) == ["part", "data", "metric", "value", "low", "high", "chance", "unit", "n"]
        assert table["value"].tolist() == pytest.approx(suite.scores[suite.scores["part"] == part]["value"].tolist())
    assert len(read_examples(out / "maths.word_problems.jsonl")) == 2
    assert pd.read_csv(out / "maths.word_problems.kinds.csv")["n"].sum() == 2
    assert pd.read_csv(out / "instructions.user_oriented_instructions.battery.csv")["n"].iloc[-1] >= 60
    facts = json.loads((out / "suite.json").read_text())
    assert facts["skipped"] == suite.skipped and facts["model"]["sha256"] and facts["data"]["maths, word_problems"]["fingerprint"]
    assert "generated_instructions" in set(suite.scores["data"])  # what was read, not what was asked for
    assert any(line.startswith("generated_instructions: stand-in for user_oriented_instructions") for line in suite.stand_ins)


def test_shares_have_intervals(written):
    shares = written[1].scores.query("unit == 'share' and metric != 'rougeL'")
    assert len(shares) and ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()


def test_of_a_pair_and_its_exchange_one_is_right(model):
    from modernllm.alignment.preference_datasets import PreferenceRows

    subject = read_subject(str(model))
    likely, unlikely = "The function returns the value of the argument.", "zqj xvw kkq 8#7 )( ~~"
    asked = [{"role": "user", "content": "What does it return?"}]
    rows = [{"prompt": asked, "chosen": likely, "rejected": unlikely}, {"prompt": asked, "chosen": unlikely, "rejected": likely}]
    found = preference_scores(subject, lambda: PreferenceRows("own", "test", rows=rows))
    one, other = found.examples
    assert one.right is not other.right and one.output == other.output and found.scores[0]["value"] == 0.5
    assert one.confidence == pytest.approx(other.confidence) and one.reference.strip() == likely
    assert ["preference violated" in e.categories for e in (one, other)] == [not one.right, not other.right]


def test_held_out_sets_stand_beside_chance(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite_parts, "smallbench", partial(smallbench, stand_in=True))
    assert main(["evaluate", str(model), "--suite", "smallbench", "--rows", "3", "--out", str(tmp_path / "out")]) == 0
    lines = {tuple(line.split()[1:3]): line for line in capsys.readouterr().out.splitlines() if line.startswith("smallbench")}
    assert len(lines) == 13 and all("chance 0." in line for key, line in lines.items() if key[1] != "perplexity")
    table = pd.read_csv(tmp_path / "out/suite.csv").set_index(["data", "metric"])
    assert table.loc[("mean", "accuracy"), "n"] == 18 and table["chance"].isna().sum() == 1
    assert {tuple(e.categories) for e in read_examples(tmp_path / "out/smallbench.all.jsonl")} == {(name,) for name in SETS}
    assert list(json.loads((tmp_path / "out/suite.json").read_text())["data"]) == ["smallbench, generated_choices"]


def test_the_command_prints_a_summary(model, tmp_path, capsys):
    assert main(["evaluate", str(model), "--suite", "speed", "--rows", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "tokens/s" in said and str(tmp_path / "out") in said


def test_parts_are_named_once_and_all_is_all():
    assert chosen_parts("maths, lm,maths") == ["maths", "lm"] and chosen_parts("all") == chosen_parts("lm,all") == list(parts())


@pytest.mark.parametrize("names", ["maths,spead", "", "everything"])
def test_an_unknown_part_is_refused(model, names, capsys):
    assert main(["evaluate", str(model), "--suite", names or ","]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "part of the suite" in error and "allowed: lm, tasks, instructions" in error


@pytest.mark.parametrize("more", [("--task", "sst2"), ("--data", "embedded_docs")])
def test_the_suite_chooses_its_data(model, more, capsys):
    assert main(["evaluate", str(model), "--suite", "lm", *more]) == 2
    assert "--suite chooses its data" in capsys.readouterr().err


def test_a_suite_of_which_nothing_can_be_had_is_refused(model, tmp_path, capsys):
    assert main(["evaluate", str(model), "--suite", "tasks", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "nothing could be evaluated" in error and "sst2" in error and not (tmp_path / "out").exists()


def test_a_model_of_another_kind_is_refused(model, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    classifier, tokenizer = load_pretrained(model, "classification")
    save_model(tmp_path / "classifier", classifier, tokenizer)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    save_model(tmp_path / "t5", T5ForConditionalGeneration(config), tokenizer)
    for name, kind in (("classifier", "classification"), ("t5", "seq2seq")):
        with pytest.raises(InputError, match=f"is a {kind} model; needed: a causal one"):
            read_subject(str(tmp_path / name))


def test_a_model_without_a_chat_template_skips_what_needs_one(model, tmp_path):
    loaded, tokenizer = load_pretrained(model)[0], load_tokenizer(model)
    tokenizer.chat_template = None
    save_model(tmp_path / "plain", loaded, tokenizer)
    suite = run_suite(read_subject(str(tmp_path / "plain"), rows=2), ["instructions", "preferences", "maths"], tmp_path / "out")
    assert set(suite.scores["part"]) == {"maths"}
    for what in ("instructions, user_oriented_instructions", "preferences, arithmetic"):
        assert "chat template" in suite.skipped[what]


def test_a_plot_has_a_panel_for_each_unit():
    rows = [{"data": "a", "metric": "loss", "value": 3.0, "unit": "nats/token"},
            {"data": "a", "metric": "accuracy", "value": 0.5, "unit": "share", "low": 0.4, "high": 0.6}]
    figure = draw_scores(pd.DataFrame(rows), "part")
    assert [axes.get_xlabel() for axes in figure.axes] == ["nats/token", "share"] and figure.axes[1].get_xlim() == (0, 1)


def test_scores_do_not_depend_on_the_run(written, model, tmp_path):
    torch.manual_seed(5)
    again = run_suite(read_subject(str(model), rows=2), ["maths", "preferences"], tmp_path)
    before, after = (suite.scores.set_index(["part", "data", "metric"])["value"] for suite in (written[1], again))
    assert before.loc[after.index].tolist() == after.tolist()
