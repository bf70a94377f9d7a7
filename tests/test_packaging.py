"""The files that hold the project together agree with each other."""

import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import modernllm

TARGETS = ("install", "models", "reproduce", "plan", "test", "lab", "docs", "paper", "slides", "sync", "lock", "clean")


@pytest.fixture
def pins(root):
    lines = (root / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_requirement_has_a_reason_and_a_pin(root, pins):
    for line in (root / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            spec, _, reason = line.partition("#")
            requirement = Requirement(spec.strip())
            assert len(reason.split()) > 1, f"{requirement.name} has no reason"
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier
    assert "sphinx-revealjs" in pins and "sphinx" not in pins


def test_extras_have_a_pin(root, pins):
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for requirement in map(Requirement, sum(extras.values(), [])):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_plain(pins):
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())


def test_one_version(root):
    assert f"version = {modernllm.__version__}\n" in (root / "settings.ini").read_text()
    assert yaml.safe_load((root / "CITATION.cff").read_text())["version"] == modernllm.__version__


def test_a_bare_make_lists_the_targets(root):
    done = subprocess.run(["make", "-s"], cwd=root, capture_output=True, text=True, check=True)
    assert all(re.search(rf"^  {target} +\S", done.stdout, re.M) for target in TARGETS)


def test_the_clean_machine_runs_the_readme_command(root):
    script = root / ".ci/run"
    assert os.access(script, os.X_OK) and script.read_text().rstrip().endswith("exec make test")
    assert "make test " in (root / "README.md").read_text()


@pytest.mark.parametrize("pattern", [".github/workflows/*.yml", "infra/**/*.yaml", ".pre-commit-config.yaml"])
def test_yaml_parses(root, pattern):
    files = list(root.glob(pattern))
    assert files and all(isinstance(yaml.safe_load(file.read_text()), dict) for file in files)
