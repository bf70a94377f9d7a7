"""Recordings: what is read is what the teacher gave; kill, full disk and damage are survived; what does not belong is refused."""

import copy
import errno
import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError, RunFailed
from modernllm.core.locks import lock, unlock
from modernllm.data.corpus import TokenSplit
from modernllm.data.encoding import IGNORE
from modernllm.data.tokenizers import SMALLEST, train_bpe, with_tokens
from modernllm.distill import recording as module
from modernllm.distill import recording_files
from modernllm.distill.fixed_blocks import FixedBlocks
from modernllm.distill.packed_logits import packed_size
from modernllm.distill.recording import RecordedTeacher, plan_recording, record_teacher
from modernllm.distill.recording_files import open_recording
from modernllm.distill.signals import OnlineTeacher, SampledTokens, SignalSettings, TeacherHead
from modernllm.distill.whitening import layer_states, whitening_statistics
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.config import TrainConfig
from modernllm.training.objectives import LossOutput, Objective
from modernllm.training.trainer import Trainer

V = SMALLEST
TOP = SignalSettings(logits="topk", k=16, hidden=(0, 2), attentions=(1,))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text"], vocab_size=V)


def a_model(seed=0, **more):
    torch.manual_seed(seed)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                           initializer_range=0.3, **more))


def with_bias():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                         num_attention_heads=2, tie_word_embeddings=False, pad_token_id=0))
    model.lm_head = nn.Linear(16, V)
    return model


def lower_case():
    "A tokenizer of the same size that encodes differently."
    tokenizer = copy.deepcopy(train_bpe(["some text"], vocab_size=V))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def a_split(n=300, seed=0):
    tokens, starts = np.random.default_rng(seed).integers(8, V, n).astype(np.uint16), np.array([0, n // 3])
    tokens[starts] = 1
    return TokenSplit("noise", "train", tokens=tokens, document_starts=starts, vocab_size=V, n_bytes=n, n_words=n,
                      n_line_ends=0, fingerprint="f")


def blocks_of(split=None, **more):
    return FixedBlocks(split or a_split(), **{"block_size": 16, "batch_size": 4, **more})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 6000)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    "A recording that no test changes, its teacher and its blocks."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", 6000)
        folder, teacher = tmp_path_factory.mktemp("made") / "teacher", OnlineTeacher(a_model(), TOP)
        return record_teacher(folder, teacher, blocks_of(), tokenizer, origin={"name": "small"}), teacher, blocks_of()


@pytest.fixture
def copied(made, tmp_path):
    "A copy of the recording that may be changed, and the call that continues it."
    recording, teacher, blocks = made
    shutil.copytree(recording.folder, tmp_path / "copy")
    return open_recording(tmp_path / "copy"), partial(record_teacher, tmp_path / "copy", teacher, blocks)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def same_logits(given, exact, half_step=0.05):
    order = exact.ids.argsort()
    assert given.ids.equal(exact.ids.gather(1, order))
    torch.testing.assert_close(given.logprobs, exact.logprobs.gather(1, order), rtol=0, atol=half_step)
    torch.testing.assert_close(given.tail, exact.tail, rtol=0, atol=half_step)


def test_what_is_read_is_what_the_teacher_gave(made):
    recording, teacher, blocks = made
    recorded = RecordedTeacher(recording)
    assert recording.shards > 2 and (recorded.vocab_size, recorded.hidden_size, recorded.n_layers) == (V, 16, 2)
    in_order = blocks_of(shuffle=False)
    for batch in [blocks[i] for i in range(9)] + [in_order[4]]:  # the last holds a short block and a row of padding
        given, exact = recorded.signal(batch), teacher.signal(batch)
        same_logits(given.logits, exact.logits)
        real = batch["rows"] >= 0
        for kind in ("hidden", "attentions"):
            assert getattr(given, kind).keys() == getattr(exact, kind).keys()
            for layer, values in getattr(given, kind).items():
                assert values.dtype == torch.float32 and values.shape == getattr(exact, kind)[layer].shape
                torch.testing.assert_close(values[real], getattr(exact, kind)[layer][real], rtol=2e-3, atol=2e-3)
                assert (values[~real] == 0).all()


def test_under_autocast(tmp_path, tokenizer):
    teacher, blocks = OnlineTeacher(a_model(), asking(k=V)), blocks_of()
    recorded = RecordedTeacher(record_teacher(tmp_path, teacher, blocks, tokenizer, bf16=True))
    with torch.autocast("cpu", torch.bfloat16):
        given, exact = recorded.signal(blocks[0]), teacher.signal(blocks[0])
    same_logits(given.logits, exact.logits, half_step=0.1)
    torch.testing.assert_close(given.hidden[2], exact.hidden[2].float(), rtol=0.02, atol=0.02)
    assert given.logits.logprobs.dtype == given.hidden[2].dtype == torch.float32


@pytest.mark.parametrize("cap", [None, 3.0])
def test_full_logits_are_a_product(tmp_path, tokenizer, cap):
    teacher, blocks = OnlineTeacher(a_model(final_logit_softcapping=cap)), blocks_of()
    recorded = RecordedTeacher(record_teacher(tmp_path, teacher, blocks, tokenizer))
    given, exact = recorded.signal(blocks[0]).logits, teacher.signal(blocks[0]).logits
    assert isinstance(given, TeacherHead) and given.softcap == cap and given.weight.equal(exact.weight)
    assert not any(p.requires_grad for p in recorded.parameters())
    torch.testing.assert_close(given.hidden, exact.hidden, rtol=2e-3, atol=2e-3)


def test_a_table_of_another_head(tmp_path, tokenizer):
    teacher, blocks = OnlineTeacher(with_bias()), blocks_of()
    recorded = RecordedTeacher(record_teacher(tmp_path, teacher, blocks, tokenizer))
    given, exact = recorded.signal(blocks[0]).logits, teacher.signal(blocks[0]).logits
    assert given.shape == exact.shape == ((blocks[0]["targets"] != IGNORE).sum(), V) and not list(recorded.parameters())
    torch.testing.assert_close(given, exact, rtol=2e-3, atol=2e-3)


def test_draws_are_the_teachers_and_the_same_in_every_epoch(tmp_path, tokenizer):
    blocks = blocks_of(a_split(33), batch_size=2)
    teacher = OnlineTeacher(a_model(), SignalSettings(logits="sampled", k=3000, temperature=2.0))
    recorded = RecordedTeacher(record_teacher(tmp_path, teacher, blocks, tokenizer))
    first = blocks.batch([0, 1])
    given = recorded.signal(first).logits
    assert isinstance(given, SampledTokens) and given.ids.equal(recorded.signal(first).logits.ids)
    expected = (teacher.model(input_ids=first["input_ids"]).logits / 2).softmax(-1).flatten(0, 1)
    shares = torch.stack([row.bincount(minlength=V) for row in given.ids]) / 3000
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.05)
    assert not given.ids[:16].equal(given.ids[16:])


def test_bytes_a_token(made):
    recording, *_ = made
    columns = packed_size(16, V) + 2 * 2 * 16 + 2 * 2 * 16  # logits, two layers of hidden states, maps of two heads
    padded = recording.blocks * 16 / recording.places
    assert recording.bytes_per_token() == pytest.approx((columns + 8 / 16) * padded, rel=0.15)  # and headers
    plan = plan_recording("nowhere", *made[1:], train_bpe(["some text"], vocab_size=V))
    headers = sum(path.stat().st_size for path in recording.folder.glob("shard-*")) - plan.size
    assert 0 < headers < 600 * recording.shards and not os.path.exists("nowhere")


def test_shards_without_what_says_what_they_are_are_refused(copied, tokenizer):
    recording, again = copied
    (recording.folder / "recording.json").unlink()
    before = contents(recording.folder)
    with pytest.raises(InputError, match=r"safetensors and no recording\.json.*allowed: an empty folder"):
        again(tokenizer)
    assert contents(recording.folder) == before


def test_continued_after_kill_9(made, copied, tokenizer):
    whole, (recording, again) = contents(made[0].folder), copied
    for path in recording.folder.glob("*"):
        if path.suffix == ".safetensors":
            path.unlink()
    if (child := os.fork()) == 0:
        given = OnlineTeacher.signal

        def dies(teacher, batch):
            if 13 in batch["rows"].tolist():
                (recording.folder / ".shard-00003.safetensors.7.tmp").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return given(teacher, batch)

        OnlineTeacher.signal = dies
        again(tokenizer)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert 0 < len(recording.missing()) < recording.shards
    with pytest.raises(InputError, match=f"{len(recording.missing())} of {recording.shards} shards are missing.*record again"):
        RecordedTeacher(recording)
    again(tokenizer)
    assert contents(recording.folder) == whole


def test_continued_after_a_full_disk(made, copied, tokenizer, monkeypatch):
    whole, (recording, again) = contents(made[0].folder), copied
    for shard in (1, 2):
        recording.path(shard).unlink()
    (recording.folder / "whitening.safetensors").unlink()
    room, write = [8000], os.write

    def disk(descriptor, data):
        if room[0] < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= len(data)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk)
        with pytest.raises(RunFailed, match="shard-00002.safetensors: cannot be written: No space left on device; .* of 19 "
                           "blocks are recorded and stay: make room and record again") as caught:
            again(tokenizer)
    assert "\n" not in str(caught.value) and recording.missing() == [2]
    again(tokenizer)
    assert contents(recording.folder) == whole


def test_too_little_room_is_said_before_it_begins(made, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(RunFailed, match="the recording needs .* GB and 0.00 GB are free"):
        record_teacher(tmp_path / "new", *made[1:], tokenizer)
    assert list(contents(tmp_path / "new")) == []


def test_a_truncated_shard_is_named_and_recorded_again(made, copied, tokenizer):
    whole, (recording, again) = contents(made[0].folder), copied
    path, other, recorded = recording.path(1), recording.path(2), RecordedTeacher(recording)
    path.write_bytes(path.read_bytes()[:-100])
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    blocks = made[2]
    assert recording.missing() == [1] and not recording.is_finished()
    with pytest.raises(InputError, match="1 of .* shards are missing or cut short"):
        RecordedTeacher(recording)
    recorded.signal(blocks.batch(recording.numbers(0)))
    for shard, problem in ((1, "shard-00001.safetensors: is truncated or damaged"), (2, "shard-00002.safetensors: is damaged")):
        with pytest.raises(InputError, match=f"{problem}.*delete this one, and the same command records it again"):
            recorded.signal(blocks.batch([recording.numbers(shard)[0]]))
    again(tokenizer)
    assert contents(recording.folder) == whole and recording.is_finished()


def test_a_finished_recording_is_left_alone(copied, tokenizer):
    recording, again = copied
    before = {path: path.stat().st_mtime_ns for path in recording.folder.glob("[!.]*")}
    again(tokenizer)
    assert {path: path.stat().st_mtime_ns for path in recording.folder.glob("[!.]*")} == before


def asking(**change):
    return SignalSettings(**{**TOP.to_dict(), **change})


OTHERS = {
    "another teacher: teacher sha256": {"teacher": lambda: OnlineTeacher(a_model(1), TOP)},
    "another tokenizer: tokenizer sha256": {"tokenizer": lambda: lower_case()},
    "other data: data tokens": {"blocks": lambda: blocks_of(a_split(seed=1))},
    "other data: data n_tokens is 300 there and 299 here": {"blocks": lambda: blocks_of(a_split(299))},
    "other data: data block_size": {"blocks": lambda: blocks_of(block_size=8)},
    "other data: data separate_documents": {"blocks": lambda: blocks_of(separate_documents=True)},
    "other signals: signal k is 16 there and 15 here": {"teacher": lambda: OnlineTeacher(a_model(), asking(k=15))},
    "other signals: signal temperature": {"teacher": lambda: OnlineTeacher(a_model(), asking(temperature=2.0))},
    "other signals: signal hidden": {"teacher": lambda: OnlineTeacher(a_model(), asking(hidden=(2,)))},
    "other types of numbers: numbers dtype is float16 there and bfloat16 here": {"dtype": lambda: "bfloat16"},
    "other types of numbers: numbers computed_in": {"bf16": lambda: True},
}


@pytest.mark.parametrize("named", OTHERS)
def test_a_recording_of_something_else_is_not_continued(made, tokenizer, named, tmp_path):
    recording, teacher, blocks = made
    given = {"teacher": teacher, "blocks": blocks, "tokenizer": tokenizer}
    given |= {name: value() for name, value in OTHERS[named].items()}
    before = contents(recording.folder)
    with pytest.raises(InputError, match=f"is a recording of {named}") as caught:
        record_teacher(recording.folder, **given)
    assert "\n" not in str(caught.value) and "allowed: " in str(caught.value) and contents(recording.folder) == before


def test_check_names_what_is_another(made, tokenizer):
    recording, teacher, blocks = made
    recording.check(teacher=teacher, tokenizer=tokenizer, blocks=blocks_of(seed=3, batch_size=1, shuffle=False))
    others = [({"teacher": OnlineTeacher(a_model(1))}, "another teacher"), ({"tokenizer": lower_case()}, "another tokenizer"),
              ({"blocks": blocks_of(a_split(seed=1))}, "other data")]
    for given, named in others:
        with pytest.raises(InputError, match=f"is a recording of {named}"):
            recording.check(**given)


@pytest.mark.parametrize("change, named", [
    ({"hidden": (1,)}, r"hidden \[1\] was not recorded; allowed: \[0, 2\]"), ({"attentions": (2,)}, r"attentions \[2\]"),
    ({"k": 8}, "k 8 was not recorded; allowed: 16"), ({"temperature": 2.0}, "temperature 2.0"),
    ({"logits": "full"}, "logits full"),
    ({"logits": "sampled"}, "logits sampled was not recorded; allowed: topk"),
])
def test_what_was_not_recorded_is_not_given(made, change, named):
    with pytest.raises(InputError, match=named):
        RecordedTeacher(made[0], asking(**change))


def test_a_part_of_what_was_recorded(made):
    recording, teacher, blocks = made
    given = RecordedTeacher(recording, SignalSettings(logits="none", hidden=(2,))).signal(blocks[0])
    assert given.logits is None and list(given.hidden) == [2] and not given.attentions
    given = RecordedTeacher(str(recording.folder), SignalSettings(logits="topk", k=16)).signal(blocks[0])
    assert given.logits.ids.shape == ((blocks[0]["targets"] != IGNORE).sum(), 16) and not given.hidden


def test_batches_that_are_not_of_the_recording(made):
    recorded, blocks = RecordedTeacher(made[0]), made[2]
    batch = blocks.batch([3, 18])
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, 5] += 1
    longer = {**batch, "targets": batch["targets"].clone()}
    longer["targets"][1] = 9  # the last block ends earlier
    for wrong, named in (({k: v for k, v in batch.items() if k != "rows"}, "has no `rows`"), (changed, "block 3 of the batch"),
                         ({**batch, "rows": torch.tensor([3, 19])}, "block 19 of the batch"), (longer, "block 18 of the batch"),
                         ({**batch, "rows": torch.tensor([18, 3])}, "block 18 of the batch")):
        with pytest.raises(InputError, match=named):
            recorded.signal(wrong)
    fewer = {**batch, "targets": batch["targets"].clone()}
    fewer["targets"][0, ::2] = IGNORE
    kept = recorded.signal(fewer).logits
    assert kept.ids.equal(recorded.signal(batch).logits.ids[fewer["targets"][batch["targets"] != IGNORE] != IGNORE])


def test_numbers_that_do_not_fit(tmp_path, tokenizer, monkeypatch):
    model, blocks = a_model(), blocks_of()
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = 1e5
    teacher = OnlineTeacher(model, SignalSettings(logits="none", hidden=(0,)))
    assert (blocks.batch(range(19))["input_ids"] == 9).any()
    with pytest.raises(InputError, match=r"hidden states of layer 0 reach 1e\+05, more than float16 holds .*bfloat16"):
        record_teacher(tmp_path / "a", teacher, blocks, tokenizer, batch_size=19)
    recorded = RecordedTeacher(record_teacher(tmp_path / "b", teacher, blocks, tokenizer, dtype="bfloat16"))
    exact = teacher.signal(blocks[0]).hidden[0]
    torch.testing.assert_close(recorded.signal(blocks[0]).hidden[0], exact, rtol=1e-2, atol=1e-2)
    model.model.layers[0].register_forward_hook(lambda module, given, out: (out[0] * torch.nan, *out[1:]))
    for settings in (SignalSettings(logits="none", hidden=(1,)), SignalSettings(logits="topk", k=4)):
        with pytest.raises(InputError, match="teacher: its .* are not finite"):
            record_teacher(tmp_path / "c", OnlineTeacher(model, settings), blocks, tokenizer)
    assert not list((tmp_path / "c").glob("*.safetensors"))


@pytest.mark.parametrize("given, named", [
    ({"dtype": "float8"}, "unknown dtype 'float8'"), ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 1.5}, "batch_size is 1.5"),
])
def test_arguments_refused(made, tmp_path, tokenizer, given, named):
    with pytest.raises(InputError, match=named):
        record_teacher(tmp_path / "new", *made[1:], tokenizer, **given)
    assert not (tmp_path / "new").exists()


def test_vocabularies_that_differ(made, tmp_path, tokenizer):
    larger = with_tokens(tokenizer, ["<|new|>"])
    with pytest.raises(InputError, match=f"vocabulary: the teacher has {V} tokens, the tokenizer {V + 1}, the data {V}"):
        record_teacher(tmp_path / "new", *made[1:], larger)


def test_one_recorder_at_a_time(copied, tokenizer):
    recording, again = copied
    held = lock(recording.folder)
    try:
        with pytest.raises(InputError, match="is recording into this folder"):
            again(tokenizer)
    finally:
        unlock(held)


def test_folders_that_are_no_recording(tmp_path):
    with pytest.raises(InputError, match="is no recording of a teacher: recording.json cannot be read: No such file"):
        open_recording(tmp_path)
    for text, named in (("{", "is not JSON"), ('{"format": 2}', "format 2; allowed: format 1")):
        (tmp_path / "recording.json").write_text(text)
        with pytest.raises(InputError, match=named):
            RecordedTeacher(tmp_path)


@pytest.mark.parametrize("text, lost", [
    ("[]", "format"), ("{}", "format"), ('{"format": 1}', "key.teacher.sha256"),
    ('{"format": 1, "key": 3}', "key.teacher.sha256"),
])
def test_a_manifest_that_is_not_whole(tmp_path, text, lost):
    (tmp_path / "recording.json").write_text(text)
    with pytest.raises(InputError, match=f"no whole recording: {lost} in recording.json is missing or damaged; allowed: "):
        open_recording(tmp_path)


def test_each_entry_of_a_manifest_is_needed(copied):
    recording, _ = copied
    for path in recording_files._WHOLE:
        changed = copy.deepcopy(recording.manifest)
        *names, last = path.split(".")
        part = changed
        for name in names:
            part = part[name]
        del part[last]
        (recording.folder / "recording.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=f"no whole recording: {path} in recording.json is missing"):
            open_recording(recording.folder)
    (recording.folder / "recording.json").write_text(json.dumps(recording.manifest | {"blocks_per_shard": 0}))
    with pytest.raises(InputError, match="blocks_per_shard in recording.json is missing or damaged"):
        open_recording(recording.folder)


def test_whitening_is_stored(made, copied, tokenizer):
    recording, _, blocks = made
    batches = [blocks.batch([n]) for n in range(recording.blocks)]
    for layer in (0, 2):
        found = recording.whitening(layer)
        states = layer_states(RecordedTeacher(recording), batches, layer)
        expected = whitening_statistics(states)
        assert found.rank == expected.rank and found.mean.equal(expected.mean) and found.matrix.equal(expected.matrix)
    with pytest.raises(InputError, match="hidden states of layer 1 were not recorded; allowed: 0, 2"):
        recording.whitening(1)
    (copied[0].folder / "whitening.safetensors").unlink()
    assert copied[1](tokenizer).whitening(2).matrix.equal(recording.whitening(2).matrix)


class Towards(Objective):
    "Cross-entropy over the tokens that a teacher kept."

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def identity(self):
        return self.teacher.identity()

    def loss(self, model, batch):
        top, scored = self.teacher.signal(batch).logits, batch["targets"] != IGNORE
        logprobs = model(input_ids=batch["input_ids"]).logits[scored].log_softmax(-1).gather(1, top.ids)
        return LossOutput(-(top.logprobs.exp() * logprobs).sum(), scored.sum())


def test_a_student_is_trained_and_resumed_without_the_teacher(made, copied, tmp_path, tokenizer):
    recording, _, blocks = made
    config = TrainConfig(max_steps=6, learning_rate=1e-2, precision="fp32", checkpoint_every_steps=3)

    def trainer(source, folder, **more):
        given = TrainConfig(**{**config.to_dict(), **more})
        return Trainer(a_model(5), Towards(RecordedTeacher(source)), blocks, given, callbacks=[], folder=folder)

    whole = trainer(recording, tmp_path / "a")
    result = whole.fit()
    losses = [row["loss"] for row in trainer(recording, tmp_path / "b", log_every=1).fit().history["train"]]
    assert losses[-1] < losses[0]
    shutil.rmtree(tmp_path / "a" / "step_00000006")
    again = trainer(recording, tmp_path / "a")
    assert all(p.equal(q) for p, q in zip(again.fit().model.parameters(), result.model.parameters()))
    shutil.rmtree(copied[0].folder)
    other = record_teacher(copied[0].folder, OnlineTeacher(a_model(1), TOP), blocks, tokenizer)
    shutil.rmtree(tmp_path / "a" / "step_00000006")
    with pytest.raises(InputError, match="checkpoint is of another training run: objective: recording"):
        trainer(other, tmp_path / "a").fit()
