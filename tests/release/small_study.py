"A study that trains a language model of a few thousand weights on a text of its own, in seconds."

import json
import random

PLAN = """
title: A small model
question: Does it come out again?
profiles: {smoke: {}}
variants: {base: {}, more: {inputs: {start: {variant: base, artifact: model}}}}
"""
PARAMETERS = """
study = "small_lm"
variant = "base"
seed = 0
profile = "smoke"
run_dir = ""
inputs = {}
dataset = "text.txt"
vocab_size = 280
context = 16
max_steps = 60
"""
WORK = """
import os
import time

from modernllm.core.callbacks import Callback
from modernllm.core.runs import Run
from modernllm.experiments.pretraining import evaluate_perplexity, new_decoder, pretrain
from modernllm.experiments.run_io import keep_model, read_corpus
from modernllm.models.sources import load_pretrained
from modernllm.training.config import TrainConfig


class Pause(Callback):
    def step_end(self, trainer, row):
        time.sleep(float(os.environ.get("PAUSE", 0)))  # no parameter: the run is the same


run = Run.of_notebook(globals())
corpus = read_corpus(run, dataset, vocab_size)
shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "residual_dropout": 0.1}
model = new_decoder(corpus, context=context, seed=seed, **shape)
if inputs:
    model, _ = load_pretrained(run.input("start"))
config = TrainConfig(seed=seed, max_steps=max_steps, learning_rate=3e-3, log_every=5, eval_every=15, checkpoint_every_steps=4,
                     checkpoint_every_minutes=0)
pretrain(run, model, corpus, config, context=context, batch_size=4, eval_tokens=64, callbacks=[Pause()])
evaluate_perplexity(run, model, corpus, context=context, test=False)
keep_model(run, model, corpus.tokenizer)
run.finish();
"""


def notebook(*sources):
    "The text of a notebook whose first cell holds the parameters."
    cells = [{"cell_type": "code", "id": f"c{n}", "metadata": {} if n else {"tags": ["parameters"]}, "source": source.strip(),
              "outputs": [], "execution_count": None} for n, source in enumerate(sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def write_study(root):
    "Put the study and its text into a project's folder."
    folder = root / "nbs/studies/small_lm"
    folder.mkdir(parents=True)
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "run.ipynb").write_text(notebook(PARAMETERS, WORK))
    chance = random.Random(0)
    words = "the a small large model text word is was reads writes of in and".split()
    lines = [" ".join(chance.choices(words, k=12)) + ".\n" for _ in range(400)]
    (root / "text.txt").write_text("\n\n".join(lines))  # two blank lines end a document


def train(root, variant="base", **params):
    "Execute the study in this process."
    from modernllm.workflow.first_steps import execute

    run_dir = root / f"runs/smoke/small_lm/{variant}/s0"
    execute(root / "nbs/studies/small_lm/run.ipynb", {"variant": variant, "run_dir": str(run_dir), **params})
    return run_dir
