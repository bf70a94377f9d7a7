"""A search of hidden-loss weight, layer map and projector: killed, continued, pruned, and what is no search."""

import json
from itertools import count
from types import SimpleNamespace

import pytest
import student_worker as worker

from modernllm.core.config import InputError, RunFailed
from modernllm.core.plotting import write_figure
from modernllm.distill.distillation import DistillationSettings
from modernllm.distill.search import next_trial, open_study, search
from modernllm.distill.search_space import SearchSettings, chosen_settings, narrowed, widest_signal
from modernllm.distill.signals import OnlineTeacher
from modernllm.experiments.finetuning import finetune
from modernllm.training.objectives import LanguageModelling

LOSS = DistillationSettings(hidden="cosine")
MAPS = ("last", ((1, 2),))


def judged(loss, folder, callback):
    "A trial without a training: small weights are good, one map is a little better."
    value = loss.hidden_weight + 0.1 * (loss.layers == "last")
    return SimpleNamespace(result=SimpleNamespace(stopped="finished"), best={"loss": value, "step": 1})


def trained(scores, learning_rate=1e-3):
    "Six steps of a training whose evaluations, at steps 2, 4 and 6, give these scores."
    def fit(loss, folder, callback):
        given = iter([9.0, *scores])
        config = worker.SETTINGS.training(max_steps=6, eval_every=2, learning_rate=learning_rate, precision="fp32", trackers=[])
        return finetune(worker.student(), LanguageModelling(), worker.SETTINGS.blocks(worker.split("train", 400, 0), 0),
                        lambda model, objective: {"loss": next(given)}, config, callbacks=[callback], folder=folder)
    return fit


def test_killed_between_trials_and_inside_one_a_search_goes_on_where_it_was(processes, tmp_path):
    whole = worker.search_trials(tmp_path / "whole", tmp_path / "whole.log")
    lines = (tmp_path / "whole.log").read_text().split()
    assert [line for line in lines if line.startswith("told")] == ["told:0", "told:1", "told:2"]
    ends = [lines.index("told:0"), lines.index("1:6") - lines.index("1:1")]  # events of each process, the kill not counted
    for end in ends:
        process = processes.Process(target=worker.search_trials, args=(tmp_path / "killed", tmp_path / "killed.log", end))
        process.start()
        process.join(120)
        assert process.exitcode == -9
    rows = worker.search_trials(tmp_path / "killed", tmp_path / "killed.log")
    assert rows == whole and len(rows) == 3
    again = (tmp_path / "killed.log").read_text().split()
    assert again.count("1:5") == 2  # on from the checkpoint of step 4; nothing else was made twice
    again.remove("1:5")
    assert again == [line for line in lines if line != "told:0"] and not (tmp_path / "killed/trials").exists()


def test_interrupted_or_not_the_same_seed_proposes_the_same(tmp_path):
    asked, said = SearchSettings(layer_maps=MAPS, prune_after=3), []
    whole = search(tmp_path / "whole", asked, LOSS, 13, judged, said.append)  # the last three by the estimator
    calls = count()

    def interrupted(*given):
        if next(calls) in (2, 11):
            raise KeyboardInterrupt
        return judged(*given)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "parts", asked, LOSS, 13, interrupted, said.append)
    study = open_study(tmp_path / "parts", asked, LOSS)
    assert next_trial(study, asked)[0].number == 10  # the interrupted one, not a new one
    parts = search(tmp_path / "parts", asked, LOSS, 13, interrupted, said.append)
    assert parts.rows == whole.rows and len(said) == 26
    made = next(calls)
    assert search(tmp_path / "parts", asked, LOSS, 13, interrupted).rows == whole.rows and next(calls) == made + 1
    other = search(tmp_path / "other", SearchSettings(layer_maps=MAPS, search_seed=1), LOSS, 3, judged, said.append)
    assert other.rows != whole.rows
    assert whole.best()["loss"] == min(row["loss"] for row in whole.rows)
    shares = whole.importances
    assert shares["hidden_weight"] == max(shares.values()) > 0.8 and sum(shares.values()) == pytest.approx(1)
    paths = write_figure(whole.plot(), tmp_path, "search")
    assert paths["png"].read_bytes()[:4] == b"\x89PNG" and b"<svg" in paths["svg"].read_bytes()
    assert [row["loss"] for row in whole.rows] == sorted(row["loss"] for row in whole.rows)


def test_a_trial_of_which_not_all_was_written_is_proposed_again(tmp_path):
    asked = SearchSettings(layer_maps=MAPS)
    study = open_study(tmp_path / "torn", asked, LOSS)
    study.ask().suggest_float("hidden_weight", 0.1, 10, log=True)
    torn, whole = (search(tmp_path / name, asked, LOSS, 2, judged, len).rows for name in ("torn", "whole"))
    assert {row["trial"] for row in torn} == {1, 2}
    assert [{**row, "trial": 0} for row in torn] == [{**row, "trial": 0} for row in whole]


def test_a_trial_that_is_behind_is_stopped(tmp_path, capsys):
    asked, steps = SearchSettings(layer_maps=("last",), projectors=("linear",), prune_after=1), []
    found = search(tmp_path, asked, LOSS, 1, trained([5, 4, 3]))

    def fit(*given):
        tuned = trained([5, 4.5, 1])(*given)
        steps.append((tuned.result.steps, tuned.result.stopped))
        return tuned

    found = search(tmp_path, asked, LOSS, 2, fit)
    assert steps == [(4, "pruned")]
    assert [(row["state"], row["loss"], row["step"]) for row in found.rows] == [("complete", 3, 6), ("pruned", 4.5, 4)]
    said, err = capsys.readouterr()
    assert "pruned" in found.table() and "trial 1: pruned, 4.5000 nats at step 4" in said
    assert "Trial" not in err and "study" not in err  # of Optuna's own log
    assert found.best()["trial"] == 0 and found.importances == {} and found.plot()


def test_a_training_that_diverges_is_a_bad_trial_and_a_full_disk_is_none(tmp_path):
    asked = SearchSettings(layer_maps=("last",))
    found = search(tmp_path, asked, LOSS, 1, trained([5, 4, 3], learning_rate=1e30))
    assert found.rows[0]["state"].startswith("diverged: ") and found.rows[0]["loss"] is None and "at step" in found.table()
    with pytest.raises(RunFailed, match="every training has diverged"):
        found.best()
    found = search(tmp_path, asked, LOSS, 2, trained([5, float("nan"), 3]))
    assert found.rows[0]["state"] == "diverged: loss on validation is not finite at step 4"

    def full(*given):
        raise RunFailed("No space left on device")

    with pytest.raises(RunFailed, match="No space left"):
        search(tmp_path, asked, LOSS, 3, full)
    assert search(tmp_path, asked, LOSS, 3, judged).best()["trial"] == 2


def test_a_trial_is_what_its_row_says():
    asked = SearchSettings(layer_maps=MAPS, lowest_weight=2.0, highest_weight=2.0)
    losses = asked.losses(LOSS)
    assert [loss.layers for loss in losses] == ["last"] * 3 + [((1, 2),)] * 3
    params = {"hidden_weight": 2.0, "layers": "[[1, 2]]", "projector": "linear"}
    assert DistillationSettings.make(LOSS.to_dict(), **chosen_settings(params)).layers == ((1, 2),)
    teacher = OnlineTeacher(worker.teacher_model(), widest_signal(asked.losses(LOSS), LOSS.signal(2, 2), 2, 2))
    maps = SearchSettings(layer_maps=("last", ((2, 1),))).losses(LOSS)
    assert widest_signal(maps, LOSS.signal(2, 2), 2, 2).hidden == (1, 2)
    assert narrowed(teacher, LOSS, 2).identity() == OnlineTeacher(worker.teacher_model(), LOSS.signal(2, 2)).identity()


@pytest.mark.parametrize("given, said", [
    ({"lowest_weight": 3.0, "highest_weight": 1.0}, "lowest_weight is 3; allowed: highest_weight, 1, or less"),
    ({"lowest_weight": 0.0}, "lowest_weight is 0"), ({"layer_maps": ()}, "layer_maps"), ({"layer_maps": ("first",)}, "first"),
    ({"layer_maps": ("last", "last")}, "each of them once"), ({"projectors": ("lineer",)}, "lineer"),
    ({"prune_after": 0}, "prune_after"),
])
def test_what_is_no_space_is_refused(given, said):
    with pytest.raises(InputError) as error:
        SearchSettings(**given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_search_is_refused(tmp_path):
    asked = SearchSettings(layer_maps=MAPS)
    with pytest.raises(InputError, match="trials is 0; allowed: 1 or more"):
        search(tmp_path / "none", asked, LOSS, 0, judged)
    with pytest.raises(InputError, match="hidden"):
        search(tmp_path / "none", asked, DistillationSettings(), 1, judged)
    assert not (tmp_path / "none").exists()
    search(tmp_path, asked, LOSS, 1, judged)
    others = {"search_seed": (SearchSettings(layer_maps=MAPS, search_seed=1), LOSS), "layer_maps": (SearchSettings(), LOSS),
              "hidden": (asked, DistillationSettings(hidden="mse"))}
    for name, (other, loss) in others.items():
        with pytest.raises(InputError, match=rf"another search \({name}\)"):
            search(tmp_path, other, loss, 1, judged)
    changed = json.loads(LOSS.model_dump_json()) | {"hidden_weight": 3.0, "layers": "uniform"}  # which are searched
    assert len(search(tmp_path, asked, DistillationSettings(**changed), 1, judged).rows) == 1
