"""Two processes, with whole parameters or shares of them, do what one does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import parallel_workers
import pytest
import torch
import workers
from parallel_workers import averages, decoder, interrupted, of, trainer
from torch import nn
from workers import Signal

from modernllm.core.config import InputError, RunFailed
from modernllm.training import checkpoint as checkpoints
from modernllm.training.parallel import processes as all_processes
from modernllm.training.parallel import apply_fsdp, is_sharded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def alone(folder):
    "The same trainings in one process, and checkpoints of its third step."
    same = dict(accumulation=2)
    assert interrupted(trainer(folder / "one to two", callbacks=[*averages(), Signal(3)], optimizer="muon", **same)) == 3
    shutil.copytree(folder / "one to two", folder / "one to two plain")
    found = {name: of(trainer(callbacks=averages(), optimizer=name, **same).fit()) for name in ("adamw", "muon")}
    return found | {"experts": of(trainer(experts=4, **same).fit())}


def run_two(processes, target, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [processes.Process(target=target, args=(rank, port, folder)) for rank in (0, 1)]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0, 0]


@pytest.fixture(scope="module")
def both(processes, folder, alone):
    "What each of two processes found."
    run_two(processes, parallel_workers.two, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def assert_same(result, other):
    assert result["steps"] == other["steps"] and result["stopped"] == other["stopped"]
    for kind in ("train", "eval"):
        for ours, theirs in zip(result["history"][kind], other["history"][kind], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_shares_give_the_curve_of_one_process(both, alone, optimizer):
    "Loss, global gradient norm under clipping, averages of the weights; each process has about half of everything."
    for found in both:
        assert_same(found[optimizer], alone[optimizer])
        assert 0.45 < found[f"share of {optimizer}"] < 0.55
        assert_same(found["plain"], alone["adamw"])
        assert_same(found["experts"], alone["experts"])
    assert any(row["grad_norm"] > 0.5 for row in alone[optimizer]["history"]["train"])


def test_checkpoints_do_not_show_who_wrote_them(both, alone, folder):
    "Two processes with shares to one, one to two with shares, one to two with whole parameters: moments and averages too."
    for found in both:
        assert found["interrupted at"] == 3  # the signal came to the second process alone
        assert_same(found["one to two"], alone["muon"])
        assert_same(found["one to two plain"], alone["muon"])
    written = checkpoints.load(folder / "from two", 3)
    known = checkpoints.load(folder / "one to two", 3)
    for ours, theirs in ((written.weights, known.weights), (written.tensors, known.tensors)):
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    with pytest.raises(InputError, match="accumulation is 1 in 1 processes here and 1 in 2 there"):
        trainer(folder / "from two", optimizer="muon").fit()
    resumed = trainer(folder / "from two", callbacks=[*averages(), Signal(99)], optimizer="muon", accumulation=2)
    assert_same(of(resumed.fit()), alone["muon"])


def test_saved_model_is_whole(both, folder):
    loaded, kept = type(decoder()).from_pretrained(folder / "model"), torch.load(folder / "model.pt", weights_only=True)
    assert loaded.state_dict().keys() == kept.keys()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.state_dict().items())


def test_two_compiled_processes_have_the_losses_of_two_eager_ones(processes, tmp_path):
    run_two(processes, parallel_workers.compiled, tmp_path)
    first, second = (json.loads((tmp_path / f"compiled {rank}.json").read_text()) for rank in (0, 1))
    assert first["compiled"] == second["compiled"] and [event["layers"] for event in first["events"]] == [2]
    assert_same(first["compiled"], first["eager"])


def test_processes_agree(both):
    "On a loss that is no number in one of them, on going back, on an early stop."
    first, second = both
    assert first["no number"] == second["no number"] == "loss is nan at step 3, batch 5"
    assert first["guarded"] == second["guarded"] and first["guarded"]["skips"] == [[1, 3]]
    assert first["early stop"] == second["early stop"] and first["early stop"]["stopped"] == "early_stop"
    assert first["other folder"] is None and "process 1 finds step 1" in second["other folder"]


def test_one_process_has_nothing_to_divide():
    with pytest.warns(UserWarning, match="this is one process"):
        training = trainer(sharding="full")
    assert not any(is_sharded(p) for p in training.model.parameters())
    with pytest.raises(InputError, match="sharding.*'full'"):
        trainer(sharding="fulll")


def test_processes_that_do_not_know_each_other(monkeypatch):
    all_processes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFailed, match="2 processes were started, but Accelerate knows of 1"):
        trainer()


def test_a_scalar_cannot_be_sharded(monkeypatch):
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(1.0))
    monkeypatch.setattr("modernllm.training.parallel.processes", lambda: type("Two", (), {"num_processes": 2}))
    with pytest.raises(InputError, match="scale is a scalar, which cannot be sharded"):
        apply_fsdp(module, "full", torch.device("cpu"))


def test_deterministic_twice(processes, tmp_path):
    "Two processes that know nothing of each other, two threads each: the same bits."
    names = ["first", "second"]
    for name in names:
        process = processes.Process(target=workers.train, args=(None, None, tmp_path / name),
                                    kwargs=dict(deterministic=True, max_steps=30, threads=2))
        process.start()
        process.join(300)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in names)
    assert first == second and first["weights"]


def test_accelerate_launch(tmp_path):
    "The command as a person types it, with a model that any process can load."
    binaries = Path(sys.executable).parent
    launch = ("launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 --mixed_precision no "
              "--dynamo_backend no")
    train = ("train vocab_size=512 limit_documents=20 hidden_size=16 num_hidden_layers=1 num_attention_heads=2 "
             "max_position_embeddings=32 batch_size=2 max_steps=4 precision=fp32 sharding=full --out")
    line = [binaries / "accelerate", *launch.split(), binaries / "modernllm", *train.split(), tmp_path / "out"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1  # the first process speaks
    state = checkpoints.load_latest(tmp_path / "out").state
    assert state["processes"] == 2 and state["config"]["sharding"] == "full"
    from modernllm.models.sources import load_pretrained
    model, _ = load_pretrained(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) > 10_000
