"A project with finished small runs, in a repository of its own, and the bundle that was made of one."

import shutil
import subprocess
from pathlib import Path

import pytest
import small_study

import modernllm
from modernllm.cli.app import main
from modernllm.workflow.first_steps import repeat_here

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    "The project's folder; runs small_lm/base/0 and small_lm/more/0, which starts from it, are finished."
    folder = tmp_path_factory.mktemp("released")
    small_study.write_study(folder)
    (folder / ".gitignore").write_text("runs/\ndata/cache/\ndata/records/smoke/\ndist/\n")
    for name in ("constraints.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODERNLLM_ROOT", str(folder))
        for name in ("MODERNLLM_RUNS", "MODERNLLM_CACHE", "MODERNLLM_STUDIES"):
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        small_study.train(folder)
        start = {"study": "small_lm", "variant": "base", "seed": 0, "artifact": "model"}
        small_study.train(folder, "more", inputs={"start": start}, max_steps=4)
        yield folder


@pytest.fixture(scope="module")
def bundle(released):
    "The bundle of small_lm/base/0, whose first steps were repeated in this process; `verify` repeats them in another."
    def repeat(record, steps, runs):
        return repeat_here(released / "nbs/studies/small_lm/run.ipynb", {"run_dir": "", **record.params}, steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODERNLLM_CACHE", str(released / "data/cache/again"))
        patch.setattr("modernllm.reporting.release.repeat", repeat)
        assert main(["release", f"v{modernllm.__version__}", "--profile", "smoke", "--run", "small_lm/base/0"]) == 0
    return released / f"dist/modernllm-{modernllm.__version__}.tar.gz"
