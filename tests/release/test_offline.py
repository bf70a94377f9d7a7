"""infra/offline: what is packed is all that a machine with torch and transformers lacks, and what was packed runs."""

import ast
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement


@pytest.fixture
def pack(root):
    return runpy.run_path(str(root / "infra/offline/pack.py"))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(*names: str) -> set[str]:
    "Packages with all that they require."
    found, waiting = set(), list(map(plain, names))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [plain(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def imports(path) -> set[str]:
    "Top-level names that a module imports when it is loaded, of others than this package."
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"modernllm"}


def test_a_dry_run_shows_the_commands_and_writes_nothing(root, tmp_path):
    command = [sys.executable, root / "infra/offline/pack.py", tmp_path / "offline", "--python", "3.13", "--dry-run"]
    wheels, tree, there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "pip download --no-deps --only-binary=:all: --python-version 3.13 --platform manylinux_2_28_x86_64" in wheels
    versions = plain((root / "constraints.txt").read_text())
    packages = [word for word in wheels.split() if "==" in word]
    assert len(packages) == 10 and all(f"\n{plain(package)}\n" in versions for package in packages)
    assert " archive " in tree and there == "there: sh offline/run.sh gpu-check" and not any(tmp_path.iterdir())


def test_all_that_the_check_imports_is_packed_or_comes_with_torch_and_transformers(pack):
    program = ("import modernllm.cli.gpu_check, modernllm.benchmarking.gpu_costs, modernllm.core.runs as runs\n"
               "print(*runs.imported_sources().values(), sep='\\n')")
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    needed = set().union(*map(imports, map(Path, loaded)))
    assert {"torch", "click", "accelerate"} <= needed
    owners, names = importlib.metadata.packages_distributions(), set(map(plain, pack["PACKAGES"]))
    there = with_requirements("torch", "transformers", "numpy") | names
    missing = {name for name in needed if not {plain(owner) for owner in owners[name]} & there}
    assert not missing, missing
    assert with_requirements(*pack["PACKAGES"]) <= there


def test_what_was_packed_runs(pack, root, tmp_path):
    "With one wheel, and the tree as it is."
    folder = tmp_path / "offline"
    (folder / "wheels").mkdir(parents=True)
    with zipfile.ZipFile(folder / "wheels/packed-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("packed.py", "")
    with tarfile.open(folder / "modernllm.tar", "w") as tar:
        for name in ("modernllm", "settings.ini"):
            tar.add(root / name, name, filter=lambda item: None if "__pycache__" in item.name else item)
    (folder / "run.sh").write_text(pack["RUN"])
    given = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODERNLLM_RUNS")}
    given["PATH"] = f"{os.path.dirname(sys.executable)}:{given['PATH']}"
    for _ in range(2):  # what is unpacked stays
        command = ["sh", folder / "run.sh", "gpu-check", "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == 0 and "--minutes" in done.stdout, done.stderr
    assert (folder / "packages/packed.py").exists() and (folder / "tree/modernllm/cli/gpu_check.py").exists()
