"""Shards: tensors come back as they were; a file that was cut short, changed or taken away is named."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from modernllm.core.config import InputError, RunFailed
from modernllm.distill.shards import read_shard, tensors_sha256, write_shard

TENSORS = {"bytes": torch.arange(6, dtype=torch.uint8).view(2, 3), "narrow": torch.randn(4).bfloat16(),
           "half": torch.randn(2, 2).half(), "none": torch.empty(0, 3)}


def test_what_is_written_is_read(tmp_path):
    write_shard(tmp_path / "a.safetensors", TENSORS | {"strided": torch.arange(6).view(2, 3).T})
    read = read_shard(tmp_path / "a.safetensors")
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and read[name].equal(tensor)
    assert read["strided"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_it_is_mapped_not_copied(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, {"numbers": torch.zeros(100_000)})
    tensor = read_shard(path)["numbers"]
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if str(path) in line]
    assert any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in spans)


def test_truncated_changed_and_missing(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, TENSORS)
    whole = path.read_bytes()
    for n in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match="a.safetensors: is truncated or damaged"):
            read_shard(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged: its contents do not have the SHA-256"):
        read_shard(path)
    save_file(TENSORS, path)  # without a hash
    with pytest.raises(InputError, match="SHA-256"):
        read_shard(path)
    path.unlink()
    with pytest.raises(InputError, match="a.safetensors: is missing"):
        read_shard(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_shard(path, {"old": torch.ones(1)})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RunFailed, match="No space left on device"):
            write_shard(path, TENSORS)
    assert list(read_shard(path)) == ["old"] and os.listdir(tmp_path) == ["a.safetensors"]


def test_hash_depends_on_everything_but_the_order():
    a, b = torch.arange(4.0), torch.arange(2.0)
    one = tensors_sha256({"a": a, "b": b})
    assert tensors_sha256({"b": b, "a": a}) == one
    others = ({"a": a}, {"b": a, "a": b}, {"a": a.view(2, 2), "b": b}, {"a": a.view(torch.int32), "b": b}, {"a": a + 1, "b": b})
    assert one not in map(tensors_sha256, others)
