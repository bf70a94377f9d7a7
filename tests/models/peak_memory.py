"""Predicted and measured memory of training steps: `python tests/models/peak_memory.py [NAME ...]`.

Each shape is trained for three steps in a process of its own, forked from one that has imported what training needs. On a CPU,
measured is the process's peak resident memory less what it held before: after all imports and the training of a tiny model, so
that what libraries load late is not counted. Freed memory that the heap keeps adds to it, by a tenth more in some processes than
in others: the least of four counts.
Where there is a graphics card, it is what PyTorch's allocator counted there at most.
"""

import json
import os
import subprocess
import sys

import torch

from modernllm.core.config import InputError
from modernllm.models.config import ModernLLMConfig
from modernllm.models.memory import step_memory

MB = 2**20
SMALL = {"vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4}
MEDIUM = {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
REGULARISED = {"residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1}
SHAPES = {  # name: (fields, sequences, tokens of each, gradient checkpointing)
    "small 1": (SMALL, 1, 256),
    "small 4": (SMALL, 4, 256),
    "small 16": (SMALL, 16, 256),
    "medium 1": (MEDIUM, 1, 256),
    "medium 4": (MEDIUM, 4, 256),
    "small 32 short": (SMALL, 32, 128),
    "small 4 long": (SMALL, 4, 512),
    "small 8 dropout": (SMALL | REGULARISED, 8, 256),
    "small 8 grouped": (SMALL | {"num_key_value_heads": 1, "qk_norm": True, "attention_gate": True}, 8, 256),
    "small 8 window": (SMALL | {"sliding_window": 64}, 8, 256),
    "untied 4": (MEDIUM | {"tie_word_embeddings": False, "final_logit_softcapping": 20.0}, 4, 256),
    "16k words 4": (MEDIUM | {"vocab_size": 16000}, 4, 256),
    "deep 16": (SMALL | {"hidden_size": 64, "num_hidden_layers": 16}, 16, 128),
    "medium 16": (MEDIUM, 16, 256),
    "2 of 4 experts 4": (SMALL | {"num_local_experts": 4}, 4, 256),
    "2 of 4 experts 16": (SMALL | {"num_local_experts": 4}, 16, 256),
    "1 of 8 experts 8": (SMALL | {"num_local_experts": 8, "num_experts_per_tok": 1}, 8, 256),
    "half experts 8": (SMALL | {"num_local_experts": 8, "intermediate_size": 176, "expert_capacity_factor": 1.25}, 8, 256),
    "every second 4": (MEDIUM | {"num_local_experts": 4, "decoder_sparse_step": 2,
                                 "shared_expert_intermediate_size": 344}, 4, 256),
    "64 experts 1": (SMALL | {"num_local_experts": 64}, 1, 256),
    "checkpointed 16": (SMALL, 16, 256, True),
    "checkpointed experts 16": (SMALL | {"num_local_experts": 4}, 16, 256, True),
}

PROGRAM = """
import json, os, sys
import torch, torch._dynamo  # the latter by the first step of an optimizer
from modernllm.benchmarking.bench import ZipfBatches
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling
from modernllm.training.trainer import TrainConfig, Trainer

def held(name):  # VmHWM: this program's own peak; getrusage's also counts the process it was forked from
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def train(steps, fields, batch_size, context, checkpointing=False):
    model = ModernDecoderLM(ModernLLMConfig.checked(**fields))
    if checkpointing:
        model.activation_checkpointing_enable()
    config = TrainConfig(max_steps=steps, learning_rate=1e-3, schedule="constant", warmup_steps=0, precision="bf16")
    Trainer(model, LanguageModelling(), ZipfBatches(model.config.vocab_size, batch_size, context), config, callbacks=[]).fit()

def measure(shape):
    torch.set_num_threads(1)
    train(1, {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}, 1, 8)
    before = held("VmRSS")
    train(3, *shape)
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else held("VmHWM") - before, flush=True)

for shape in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        measure(shape)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def predicted(name: str) -> int:
    fields, batch_size, context, *checkpointing = SHAPES[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return step_memory(ModernLLMConfig.checked(**fields), batch_size, context, device, *checkpointing)["peak"]


def measured(names: list[str]) -> list[int]:
    shapes = json.dumps([SHAPES[name] for name in names])
    # One heap for all threads, which keeps no freed blocks of a size that matters.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TOP_PAD_": "0"}
    command = [sys.executable, "-c", PROGRAM, shapes]
    programs = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(4)]
    return [min(map(int, lines)) for lines in zip(*(done.stdout.splitlines() for done in programs), strict=True)]


if __name__ == "__main__":
    print(f"{'shape':26}{'predicted':>10}{'measured':>10}{'ratio':>8}")
    for name in sys.argv[1:] or SHAPES:
        try:
            ours = predicted(name)
        except InputError as error:
            print(f"{name:26}{error}")
            continue
        (theirs,) = measured([name])
        print(f"{name:26}{ours / MB:>10.1f}{theirs / MB:>10.1f}{ours / theirs:>8.2f}", flush=True)
