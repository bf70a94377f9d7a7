import errno
import resource

import pytest
import torch
from torch import nn

from modernllm.core.config import InputError, RunFailed
from modernllm.training import checkpoint as checkpoints
from modernllm.training.checkpoint import Checkpoint


def example(value=1.0):
    return Checkpoint({"w": torch.full((50, 4), value)}, {"state": {0: {"step": torch.tensor(3.0)}}}, {"step": 3, "loss": 0.1})


def test_round_trip(tmp_path):
    checkpoints.save(tmp_path, example(), 3)
    found = checkpoints.load_latest(tmp_path)
    assert torch.equal(found.weights["w"], example().weights["w"])
    assert found.optimizer["state"][0]["step"] == 3 and found.state == {"step": 3, "loss": 0.1}


def test_nothing_there(tmp_path):
    assert checkpoints.load_latest(tmp_path / "none") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "state.json", "manifest.json"])
def test_damaged_one_is_skipped(tmp_path, file, damage):
    checkpoints.save(tmp_path, example(1.0), 1)
    checkpoints.save(tmp_path, example(2.0), 2)
    damage(tmp_path / "step_00000002" / file)
    with pytest.warns(UserWarning, match="step_00000002 is damaged"):
        assert checkpoints.load_latest(tmp_path).weights["w"][0, 0] == 1.0
    checkpoints.save(tmp_path, example(3.0), 2)  # takes the place of the damaged one
    assert checkpoints.load_latest(tmp_path).weights["w"][0, 0] == 3.0


def test_half_written_one_is_not_seen(tmp_path):
    checkpoints.save(tmp_path, example(), 1)
    (tmp_path / ".draft_step_00000002").mkdir()
    assert checkpoints.saved_steps(tmp_path) == [1]
    checkpoints.prune(tmp_path, 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_prune_keeps_what_is_needed(tmp_path):
    for step in (1, 2, 3, 4, 9):
        checkpoints.save(tmp_path, example(), step, needs=[1] if step > 1 else [])
    checkpoints.prune(tmp_path, 4, keep=2)  # 9 is later than the newest sound one: damaged
    assert checkpoints.saved_steps(tmp_path) == [1, 3, 4]


def test_disk_full(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, example(1.0), 1)
    real = checkpoints._write

    def full(folder, name, data):
        if name == "optimizer.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(folder, name, data)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(RunFailed, match="step_00000002 cannot be written: No space left.*intact"):
        checkpoints.save(tmp_path, example(2.0), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoints.load_latest(tmp_path).weights["w"][0, 0] == 1.0


def test_file_size_limit_of_the_system(tmp_path):
    "A write that the system itself refuses half-way."
    checkpoints.save(tmp_path, example(1.0), 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(RunFailed, match="cannot be written: File too large"):
            checkpoints.save(tmp_path, example(2.0), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.saved_steps(tmp_path) == [1]
    assert checkpoints.load(tmp_path, 1).weights["w"][0, 0] == 1.0


def test_tied_frozen_and_temporary_tensors():
    model = nn.Module()
    model.table, model.head, model.frozen = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(3, 3)
    model.head.weight = model.table.weight
    model.frozen.requires_grad_(False)
    model.register_buffer("kept", torch.ones(2))
    model.register_buffer("temporary", torch.ones(2), persistent=False)
    tensors = checkpoints.trained_tensors(model)
    assert sorted(tensors) == ["kept", "table.weight"]
    changed = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoints.load_trained_tensors(model, changed)
    assert not model.head.weight.any() and not model.kept.any() and model.temporary.all()


def test_other_model():
    tensors = checkpoints.trained_tensors(nn.Linear(2, 2))
    for other in (nn.Linear(2, 3), nn.Linear(2, 2, bias=False)):
        with pytest.raises(InputError, match="of another model"):
            checkpoints.load_trained_tensors(other, tensors)
