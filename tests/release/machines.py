"What a machine of the rehearsal does. Machines are forked from a server that has imported this module once."

import os
from pathlib import Path

import accelerate  # noqa: F401  (and the others: seconds in every machine)
import execnb.shell  # noqa: F401
import small_study
import torch
import torch._dynamo  # noqa: F401

import modernllm.experiments.pretraining  # noqa: F401
import modernllm.experiments.run_io  # noqa: F401
from modernllm.workflow.bucket import kept_in


def work(folder, bucket, pause):
    "Go on with the small study in a folder of this machine's own, as `modernllm study run --bucket` does."
    os.setsid()  # a group of its own, so that all of it can be killed
    os.environ |= {"MODERNLLM_ROOT": str(folder), "PAUSE": str(pause)}
    for name in ("MODERNLLM_RUNS", "MODERNLLM_CACHE", "MODERNLLM_STUDIES"):
        os.environ.pop(name, None)
    os.chdir(folder)
    torch.set_num_threads(1)
    with kept_in(Path(bucket), Path(folder) / "runs/smoke", every=0.05):
        small_study.train(Path(folder))
