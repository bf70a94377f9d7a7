"""Importing is quick because nothing heavy is loaded; the modules that were loaded are checked, not the clock."""

import subprocess
import sys
import types

import pytest

HEAVY = ("torch", "transformers", "datasets", "pandas", "matplotlib", "snakemake", "papermill", "accelerate", "numpy")


def loaded_by(code: str) -> set[str]:
    "Which heavy packages a fresh interpreter has loaded after running `code`."
    program = f"{code}\nimport sys\nsys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("code", [
    "import modernllm",
    "import modernllm.core, modernllm.data, modernllm.models, modernllm.training, modernllm.evaluation, modernllm.reporting",
    "import modernllm.core.config, modernllm.core.records, modernllm.workflow.plan",
    "from modernllm.cli import main; main(['--help'])",
    "from modernllm.cli import main; main(['study', 'run', '--help'])",
    "from modernllm.cli import main; main(['train', '--help'])",
    "from modernllm.cli import main; main(['serve', '--help'])",
])
def test_light(code):
    assert loaded_by(code) == set()


def test_public_names_are_found():
    import modernllm.alignment
    import modernllm.core
    import modernllm.data
    import modernllm.models
    import modernllm.training

    for package in (modernllm.alignment, modernllm.core, modernllm.data, modernllm.models, modernllm.training):
        for name in package._EXPORTS:
            assert not isinstance(getattr(package, name), types.ModuleType), f"{name} is the name of a module too"
        with pytest.raises(AttributeError):
            package.no_such_name  # noqa: B018
