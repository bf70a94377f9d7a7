"""Packs a folder from which a machine without a network can run `modernllm gpu-check`: wheels and the tree. See README.md.

python infra/offline/pack.py FOLDER [--python 3.12] [--machine x86_64] [--dry-run]
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What training needs beside torch and transformers; some of them have come with these in one version and not in another.
PACKAGES = ("accelerate", "annotated-types", "click", "fastcore", "psutil", "pydantic", "pydantic-core", "PyYAML",
            "typing-extensions", "typing-inspection")
GLIBC = (28, 17, 12, 5)  # 2.28 and the older ones whose wheels it can load
RUN = """#!/bin/sh
# Runs modernllm from this folder, with the packages beside it: sh run.sh gpu-check
set -e
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -d "$here/packages" ]; then
  for wheel in "$here"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$here/unpacking"; done
  mkdir -p "$here/tree" && tar xf "$here/modernllm.tar" -C "$here/tree"
  mv "$here/unpacking" "$here/packages"
fi
export PYTHONPATH="$here/packages:$here/tree" HF_HUB_OFFLINE=1 MODERNLLM_RUNS="${MODERNLLM_RUNS:-$here/runs}"
exec python3 -c "import sys; from modernllm.cli.app import main; sys.exit(main())" "$@"
"""


def pinned() -> list[str]:
    "The packages at the versions of constraints.txt."
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}
    return [f"{name}=={versions[name.lower()]}" for name in PACKAGES]


def download(folder: Path, python: str, machine: str) -> list[str]:
    "The command that fetches the wheels."
    tags = [f"manylinux_2_{glibc}_{machine}" for glibc in GLIBC] + [f"manylinux2014_{machine}"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    return [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", python, *platforms,
            "--dest", str(folder / "wheels"), *pinned()]


def archive(folder: Path) -> list[str]:
    "The command that packs the committed tree, without what is made from records."
    return ["git", "-C", str(ROOT), "archive", "--output", str(folder / "modernllm.tar"), "HEAD", "modernllm", "nbs/studies",
            "settings.ini", "infra", "data/DATASET_MANIFEST.json"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack what a machine without a network needs for `modernllm gpu-check`.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="version there")
    parser.add_argument("--machine", default="x86_64", help="`uname -m` there")
    parser.add_argument("--dry-run", action="store_true", help="show the commands alone")
    given = parser.parse_args()
    folder = given.folder.absolute()
    for command in (download(folder, given.python, given.machine), archive(folder)):
        print(" ".join(command), flush=True)
        if not given.dry_run:
            (folder / "wheels").mkdir(parents=True, exist_ok=True)
            subprocess.run(command, check=True)
    if not given.dry_run:
        (folder / "run.sh").write_text(RUN, encoding="utf-8")
    print(f"there: sh {folder.name}/run.sh gpu-check")


if __name__ == "__main__":
    main()
