"""`modernllm distill`, `record-teacher`, `distill-search`: a recording, its students, interruptions; what is refused."""

import errno
import json
import os
import shlex
import signal
import sys

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import modernllm
import modernllm.models.sources as sources
from modernllm.cli.app import main
from modernllm.cli.distill_recipe import make_distill_recipe
from modernllm.data.tokenizers import train_bpe
from modernllm.distill import forecast as forecasts
from modernllm.distill.bitnet_convert import to_bitnet
from modernllm.distill.bitnet_pack import save_packed
from modernllm.distill.ternary_generate import TernaryLinear
from modernllm.distill.recording_files import open_recording
from modernllm.models.config import ModernLLMConfig
from modernllm.models.sources import load_pretrained, save_model
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training import callbacks

TEXT = "\n\n\n".join(f"A line about the number {n}.\nAnd what comes after {n} is {n + 1}." for n in range(40))
QUICK = ["context=16", "batch_size=4", "eval_tokens=100", "max_steps=4", "eval_every=2", "precision=fp32"]


def decoder(vocabulary, seed=0, **more):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 32} | more
    return ModernDecoderLM(ModernLLMConfig(vocab_size=vocabulary, initializer_range=0.3, **shape))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A folder with text, a teacher, and models that are none for it."
    folder = tmp_path_factory.mktemp("distill")
    (folder / "my.txt").write_text(TEXT)
    (folder / "other.txt").write_text(TEXT.replace("number", "figure"))
    tokenizer = train_bpe([TEXT], 280)
    save_model(folder / "big", decoder(280), tokenizer)
    save_model(folder / "other", decoder(280, seed=1), tokenizer)
    save_model(folder / "foreign", decoder(264), train_bpe([TEXT], 264))
    damaged = decoder(280)
    with torch.no_grad():
        damaged.model.norm.weight[3] = torch.nan
    save_model(folder / "damaged", damaged, tokenizer)
    gpt2 = GPT2Config(vocab_size=280, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    save_model(folder / "gpt2", GPT2LMHeadModel(gpt2), tokenizer)
    ternary = to_bitnet(decoder(280))
    save_model(folder / "ternary", ternary, tokenizer)
    save_packed(folder / "packed", ternary)
    tokenizer.save_pretrained(folder / "packed")
    assert main(record(folder, "k=8", "hidden=[3]", "--out", str(folder / "teacher"))) == 0
    return folder


def record(base, *words, teacher="big", data="my.txt"):
    return ["record-teacher", "--teacher", str(base / teacher), "--data", str(base / data), "context=16", *words]


def distil(base, *words, teacher="big", student="layers=2 hidden=16 heads=2", data="my.txt", quick=QUICK):
    teacher = teacher if teacher == "a/b" else str(base / teacher)
    named = ["--teacher", teacher, "--student", student, "--data", str(base / data)]
    return ["distill", *named, *quick, *words]


def weights(folder):
    return load_file(folder / "model/model.safetensors")


def test_a_student_learns_from_a_recording_while_the_teacher_is_not_loaded(base, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sources, "load_pretrained", lambda *given: pytest.fail("the teacher was loaded"))
        words = ["--record", str(base / "teacher"), "--loss", "logits=kl,hidden=cosine", "--out", str(tmp_path / "one")]
        assert main(distil(base, *words)) == 0
    said = capsys.readouterr().out
    assert "word_ppl_closed" in said and "bits_per_byte" in said and "my.txt validation" in said
    model, tokenizer = load_pretrained(tmp_path / "one")
    assert model.config.vocab_size == len(tokenizer) == 280 and model.config.num_hidden_layers == 2
    there = json.loads((tmp_path / "one/model/record.json").read_text())
    assert there["models"][0]["name"] == "big" and there["losses"]["hidden"] == "cosine" and there["signal"]["k"] == 8
    assert there["metrics"]["word_ppl_closed"] > 1 and "stride 16" in there["conventions"] and there["steps"] == 4
    assert [row["step"] for row in there["audit"]] == [2, 4] and "rounds: 2; training" in said
    assert str(base) not in yaml.safe_dump(yaml.safe_load((tmp_path / "one/recipe.yaml").read_text()))
    before = weights(tmp_path / "one")
    assert main(distil(base, *words)) == 0  # the same line again
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "one").items())
    assert main(distil(base, *words, "seed=1")) == 2 and "seed" in capsys.readouterr().err


@pytest.mark.parametrize("student", ["layers=2 hidden=16 heads=2", "gpt2", "ternary"])
def test_a_ternary_student_is_used_and_packed(student, base, tmp_path, capsys, monkeypatch):
    student, out = student if "=" in student else str(base / student), tmp_path / "one"
    words = ["--bitnet", "ternary_warmup_steps=3", "eight_bit_backward=true", "--out", str(out)]
    assert main(distil(base, *words, student=student)) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if "export" in line).split()
    assert line == ["modernllm", "export", str(out), "--to", "bitnet", "--weights", "bf16"] and "ternary student" in said
    assert main([*line[1:-1], "f32", "--out", str(tmp_path / "packed")]) == 0
    assert main(["card", str(tmp_path / "packed"), "--licence", "mit"]) == 0
    text = (tmp_path / "packed/README.md").read_text()
    assert "exported as packed ternary weights" in text and "modernllm generate packed " in text
    texts, layers = [], []
    made = TernaryLinear.forward
    monkeypatch.setattr(TernaryLinear, "forward", lambda self, x: layers.append(self) or made(self, x))
    for folder in (out, tmp_path / "packed"):
        layers.clear(), capsys.readouterr()
        assert main(["generate", str(folder), "A line", "--max-new-tokens", "3", "--temperature", "0"]) == 0 and layers
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    trained, _ = load_pretrained(out)
    ids = torch.arange(12)[None]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed").eval()
        torch.testing.assert_close(packed(ids).logits, trained(ids).logits, atol=1e-4, rtol=1e-4)
    assert {tensor.dtype for tensor in load_file(tmp_path / "packed/model.safetensors").values()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize("number, status, more", [(signal.SIGINT, 130, []), (signal.SIGTERM, None, []),
                                                  (signal.SIGINT, 130, ["--bitnet", "ternary_warmup_steps=3"])])
def test_interrupted_and_continued_a_student_is_the_same(number, status, more, base, tmp_path, monkeypatch, capsys):
    words = ["--loss", "logits=kl,hidden=mse", "projector=ensemble", *more]
    assert main(distil(base, *words, "--out", str(tmp_path / "whole"))) == 0
    step_end = callbacks.ProgressBar.step_end

    def interrupted(self, trainer, row):
        step_end(self, trainer, row)
        if row["step"] == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ProgressBar, "step_end", interrupted)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the process would end
        try:
            if status is None:
                with pytest.raises(SystemExit):
                    main(distil(base, *words, "--out", str(tmp_path / "stopped")))
            else:
                assert main(distil(base, *words, "--out", str(tmp_path / "stopped"))) == status
        finally:
            signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "stopped/step_00000003/state.json").exists() and not (tmp_path / "stopped/model").exists()
    assert main(distil(base, *words, "--out", str(tmp_path / "stopped"))) == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_recorded_while_it_trains_and_continued_after_a_full_disk(base, tmp_path, monkeypatch, capsys):
    room, write = [3000], os.write

    def disk(descriptor, data):
        if b"ids" in bytes(data)[:3] or len(data) > 2000:
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    line = distil(base, "--record", str(tmp_path / "teacher"), "k=4", "--out", str(tmp_path / "one"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk)
        assert main(line) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No space left on device" in err and "record again" in err
    assert main(line) == 0 and not open_recording(tmp_path / "teacher").missing()


def refused(capsys, line):
    capsys.readouterr()
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ")
    return err


@pytest.mark.parametrize("words, said", [
    ({"student": "foreign"}, ["vocabulary", "teacher has 280 tokens, the student 264", "allowed"]),
    ({"student": "layers=2 hidden=64", "words": ["--loss", "hidden=cosine", "projector=orthogonal"]},
     ["64 wide", "32", "linear"]),
    ({"student": "layers=2 hidden=16", "words": ["--loss", "hidden=mse", "projector=none"]}, ["16 wide", "32"]),
    ({"words": ["source=topk", "k=281"]}, ["k is 281", "280"]),
    ({"words": ["--loss", "hidden=mse", "layers=[[2,4]]"]}, ["(2, 4)", "out of range", "0 to 3"]),
    ({"words": ["temperature=0"]}, ["temperature is 0"]),
    ({"words": ["--loss", "logit=kl"]}, ["'logit'", "did you mean 'logits'"]),
    ({"words": ["--loss", "logits=kll"]}, ["logits", "kll", "reverse_kl"]),
    ({"words": ["--loss", "logits=mse", "source=topk"]}, ["mse", "full"]),
    ({"words": ["lerning_rate=1"]}, ["lerning_rate", "learning_rate"]),
    ({"quick": ["context=64"]}, ["context is 64", "teacher", "32"]),
    ({"teacher": "damaged"}, ["teacher", "model.norm.weight", "not finite"]),
    ({"teacher": "nowhere"}, ["nowhere"]),
    ({"words": ["ternary_keep=[o_proj]"]}, ["ternary_keep", "bitnet is false", "allowed"]),
    ({"words": ["--bitnet", "ternary_warmup_steps=-1"]}, ["ternary_warmup_steps is -1"]),
    ({"words": ["--bitnet"]}, ["warm-up of ternary weights has 100 steps", "training 4", "ternary_warmup_steps"]),
    ({"words": ["hidden_weight=3"]}, ["hidden_weight has no effect", "--loss hidden=…"]),
    ({"words": ["layers=[[1,9]]"]}, ["layers has no effect"]),
    ({"words": ["k=7"]}, ["k has no effect", "source=topk"]),
    ({"words": ["--loss", "hidden=mse", "attention_weight=2"]}, ["attention_weight has no effect"]),
    ({"words": ["--loss", "hidden=cosine,hidden=mse"]}, ["a term is given twice"]),
    ({"words": ["--loss", "kl"]}, ["'kl' is no term", "logits=kl,hidden=cosine"]),
    ({"words": ["--bitnet", "ternary_warmup_steps=2", "ternary_keep=o_pro"]}, ["no linear layer is called 'o_pro'", "o_proj"]),
    ({"words": ["--bitnet", "ternary_warmup_steps=2"], "student": "layers=1 hidden=16 heads=2 attention_sinks=true"},
     ["Llama", "attention_sinks=True"]),
    ({"student": "ternary"}, ["student", "ternary", "allowed: --bitnet"]),
    ({"student": "packed", "words": ["--bitnet"]}, ["packed ternary weights", "allowed: the folder that training left"]),
])
def test_what_does_not_fit_is_told_in_one_line(words, said, base, tmp_path, capsys):
    words = dict(words)
    if "=" not in words.get("student", "="):
        words["student"] = str(base / words["student"])
    more = words.pop("words", [])
    err = refused(capsys, distil(base, *more, "--out", str(tmp_path / "out"), **words))
    assert all(word in err for word in said), err
    assert not (tmp_path / "out").exists()


def test_a_recording_of_something_else_is_refused(base, tmp_path, capsys):
    kept = ["--record", str(base / "teacher"), "--out", str(tmp_path / "out")]
    assert "recording of another teacher: big" in refused(capsys, distil(base, *kept, teacher="other"))
    assert "recording of other data" in refused(capsys, distil(base, *kept, data="other.txt"))
    err = refused(capsys, distil(base, *kept, quick=["context=8"]))
    assert "recording of other data: data block_size is 16 there and 8 here" in err
    assert "hidden [1] was not recorded" in refused(capsys, distil(base, *kept, "--loss", "hidden=mse", "layers=[[1,1]]"))
    assert "temperature 2.0 was not recorded; allowed: 1.0" in refused(capsys, distil(base, *kept, "temperature=2"))
    dry = ["--record", str(base / "teacher"), "--dry-run"]
    assert "hidden [1] was not recorded" in refused(capsys, distil(base, *dry, "--loss", "hidden=mse", "layers=[[1,1]]"))
    err = refused(capsys, distil(base, *dry, teacher="foreign", student="layers=1 hidden=16 heads=2"))
    assert "another teacher, whose vocab_size is 280 and not 264" in err
    assert "k 4 was not recorded; allowed: 8" in refused(capsys, distil(base, *kept, "k=4"))
    assert "another teacher" in refused(capsys, distil(base, *kept, teacher="foreign", student="layers=1 hidden=16 heads=2"))
    err = refused(capsys, record(base, "k=9", "hidden=[3]", "--out", str(base / "teacher")))
    assert "recording of other signals: signal k is 8 there and 9 here" in err


def test_a_folder_in_which_nothing_was_trained_is_free(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.yaml").write_text("student: another")
    (out / "record.json").write_text("{}")
    assert main(distil(base, "--out", str(out))) == 0


@pytest.mark.parametrize("asked", ["hidden=2,3", "hidden=1"])
def test_the_next_line_of_a_recording_can_be_typed(asked, base, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a teacher"
    assert main(record(base, "logits=none", asked, "--out", str(folder))) == 0
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert line[line.index("--record") + 1] == str(folder) and line[line.index("--loss") + 1] == "hidden=cosine"
    assert ("layers=[[6,1]]" in line) == (asked == "hidden=1")
    assert main([*line[1:], *QUICK[1:], "--out", str(tmp_path / "typed")]) == 0
    err = refused(capsys, distil(base, "--record", str(folder), "--dry-run"))
    assert "holds no logits; allowed: --loss hidden=…" in err


def test_a_changed_shard_is_found_and_recorded_again(base, tmp_path, capsys):
    line = record(base, "k=8", "--out", str(tmp_path / "teacher"))
    assert main(line) == 0
    shard, = (tmp_path / "teacher").glob("shard-*.safetensors")
    whole = shard.read_bytes()
    kept = distil(base, "--record", str(tmp_path / "teacher"), "--out", str(tmp_path / "out"))
    for repair in (line, kept):
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        said = refused(capsys, kept)
        assert f"{shard.name}: is damaged" in said and "delete this one, and the same command records it again" in said
        if repair is kept:
            shard.unlink()
        assert main(repair) == 0 and shard.read_bytes() == whole


@pytest.mark.parametrize("words, said", [
    (["hidden=[4]"], ["layer 4", "0 to 3"]), (["k=281"], ["k is 281"]), (["temperature=0"], ["temperature is 0"]),
    (["context=33"], ["context is 33", "32"]), (["dtype=int8"], ["dtype", "int8", "bfloat16"]),
    (["batch=1"], ["no setting 'batch'"]),
    (["logits=none"], ["nothing is asked for"]), (["logits=full", "k=64"], ["k has no effect", "logits=topk"]),
    (["dtype=bfloat16"], ["dtype has no effect", "hidden=[…]"]),
])
def test_a_recording_that_cannot_be_made_is_told_in_one_line(words, said, base, tmp_path, capsys):
    line = record(base, "--out", str(tmp_path / "teacher"))
    line = [word for word in line if not word.startswith("context=")] if words[0].startswith("context=") else line
    err = refused(capsys, [*line, *words])
    assert all(word in err for word in said), err
    assert not (tmp_path / "teacher").exists()


def test_what_a_line_must_name(base, capsys):
    err = refused(capsys, ["distill", "--teacher", "gpt2", "--data", "my.txt"])
    assert "student is missing: modernllm distill --teacher" in err
    assert "data is missing" in refused(capsys, ["record-teacher", "--teacher", "gpt2"])
    err = refused(capsys, distil(base, f"teacher={base / 'big'}"))
    assert "teacher is given twice" in err


def test_terms_that_loss_leaves_away_are_off(base):
    given = {"teacher": str(base / "big"), "student": "layers=1 hidden=16 heads=2", "data": str(base / "my.txt"), "context": 16}
    assert make_distill_recipe(given).loss.logits == "kl"
    from modernllm.cli.distill import with_options
    loss = make_distill_recipe(with_options(given, "hidden=cosine")).loss
    assert (loss.logits, loss.hidden, loss.attention) == ("none", "cosine", "none")
    assert make_distill_recipe(with_options(given | {"logits": "jsd"}, "hidden=cosine")).loss.logits == "jsd"


def test_a_card_says_what_the_record_says_and_uploads_nothing(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda *given: pytest.fail("the hub was asked"))
    out = tmp_path / "one"
    assert main(distil(base, "--loss", "logits=kl,hidden=cosine", "--out", str(out))) == 0
    assert f"modernllm card {out} --licence NAME" in capsys.readouterr().out
    assert main(["card", str(out), "--licence", "openrail"]) == 0
    said, text = capsys.readouterr().out, (out / "model/README.md").read_text()
    assert "uploaded: nothing" in said and "warning" in said and "teacher big" in said and "not stated" in said
    card, record = ModelCard(text), json.loads((out / "model/record.json").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        name: record["metrics"][name] for name in ("loss", "token_ppl", "word_ppl_closed", "word_ppl_raw", "bits_per_byte")}
    assert found["loss"].dataset_name == "my.txt" and found["loss"].dataset_split == "validation"
    assert card.data.license == "bigscience-openrail-m" and card.data.library_name == "modernllm"
    said = ("own text of the person who trained it", "no test split was read", "uploads nothing", record["commit"] or "none",
            "Open Source Initiative")
    for words in (*said, "stride", "`hidden`: cosine", modernllm.__version__.replace(".", "\\.")):
        assert words in text, words
    assert str(base) not in text
    text = text.replace("\\", "")
    assert "Trained on my.txt, own text of the person who trained it (train); weights chosen on my.txt, own" in text
    lists = text[text.index("its signal"):text.index("| setting")]
    assert "`projector`: linear" in lists and "logits full, temperature 1.0, hidden [3]" in lists
    assert not any(word in lists for word in ("attention", " k 128", "gradients")), lists
    assert "trained to match its logits and hidden states" in text and f"modernllm generate {out.name} " in text
    assert main(["card", str(out), "--licence", "mit", "--push-to-hub", "somebody/small"]) == 2
    said = capsys.readouterr()
    assert "nothing was uploaded" in said.err and "warning" in said.out
    assert "modernllm generate somebody/small" in (out / "model/README.md").read_text()


def test_a_card_names_the_model_that_the_student_began_as(base, tmp_path, capsys):
    assert main(distil(base, "--out", str(tmp_path / "one"), student=str(base / "other"))) == 0
    assert main(["card", str(tmp_path / "one"), "--licence", "mit"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert "the teacher big (not stated)" in warnings[0] and "the start of the student, other (not stated)" in warnings[1]
    assert "began as other, not stated" in (tmp_path / "one/model/README.md").read_text()


@pytest.mark.parametrize("words, said", [
    ([], ["model is missing", "apache-2.0"]), (["MODEL"], ["licence is missing", "openrail"]),
    (["MODEL", "--licence", "mti"], ["'mti'", "did you mean 'mit'"]),
])
def test_a_card_needs_a_licence_and_a_distilled_model(words, said, base, capsys):
    words = [str(base / "big") if word == "MODEL" else word for word in words]
    err = refused(capsys, ["card", *words])
    assert all(word in err for word in said), err


def test_a_card_names_settings_of_the_terms_that_are_on_alone(base, tmp_path, capsys):
    words = ["--loss", "logits=kl,attention=kl", "source=topk", "k=8", "--out", str(tmp_path / "one")]
    assert main(distil(base, *words)) == 0 and main(["card", str(tmp_path / "one"), "--licence", "mit"]) == 0
    text = (tmp_path / "one/model/README.md").read_text().replace("\\", "")
    lists = text[text.index("its signal"):text.index("| setting")]
    assert all(word in lists for word in ("`attention_weight`: 1", "`attention_layers`: last", " k 8,", "attentions [3]")), lists
    assert not any(word in lists for word in ("hidden", "projector", "whiten", "`layers`")), lists


def test_record_names_a_file(base, capsys):
    said = refused(capsys, distil(base, "--record", str(base / "my.txt")))
    assert "my.txt: is a file; allowed: the folder of a recording, or a new one" in said


def test_a_recording_with_damaged_files_is_recorded_again_by_the_same_line(base, tmp_path):
    words = ["--record", str(tmp_path / "teacher"), "source=full", "--loss", "logits=kl,hidden=cosine"]
    assert main(distil(base, *words, "--out", str(tmp_path / "one"))) == 0
    files = sorted((tmp_path / "teacher").glob("*.safetensors"))
    whole = [path.read_bytes() for path in files]
    assert [path.name for path in files] == ["head.safetensors", "shard-00000.safetensors", "whitening.safetensors"]
    for n, (path, content) in enumerate(zip(files, whole)):
        path.write_bytes(content[:-9])
        assert main(distil(base, *words, "--out", str(tmp_path / f"again{n}"))) == 0
        assert [path.read_bytes() for path in files] == whole


def test_a_model_that_was_not_distilled_has_no_such_card(base, capsys):
    assert "no record of a distillation" in refused(capsys, ["card", str(base / "big"), "--licence", "mit"])
    assert main(["card", "--licences"]) == 0 and "OpenRAIL" in capsys.readouterr().out


def test_a_dry_run_needs_configurations_alone_and_writes_nothing(base, project, capsys, monkeypatch):
    monkeypatch.setattr(forecasts, "matmul_limit", lambda *given: 2e11)
    alone = project / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((base / "big/config.json").read_bytes())
    before = sorted(project.rglob("*"))
    assert main(distil(base, "--dry-run", "--bitnet", "ternary_warmup_steps=3", teacher=alone)) == 0
    said = capsys.readouterr().out.splitlines()
    kinds = ["student", "memory", "work", "time", "cost", "a ternary student", "precision"]
    assert [line.split(":")[0] for line in said] == kinds
    assert "4 steps" in said[2] and "37% of 0.20 TFLOP/s" in said[3] and "MODERNLLM_CPU_HOUR_PRICE" in said[4]
    assert main(distil(base, "--dry-run", "--card", "h100", "kernels=liger", teacher=alone, quick=["context=16"])) == 0
    assert "NVIDIA H100" in capsys.readouterr().out and sorted(project.rglob("*")) == before
    assert "auto or bf16" in refused(capsys, distil(base, "--dry-run", "--card", "h100", teacher=alone))
    assert "--dry-run" in refused(capsys, distil(base, "--card", "h100"))
    assert "did you mean 'h100'" in refused(capsys, distil(base, "--dry-run", "--card", "h10", teacher=alone))
    assert "cannot be had" in refused(capsys, distil(base, "--dry-run", teacher="a/b"))


SPACE = ["layer_maps=[last,[[1,2]]]", "projectors=linear,orthogonal", "prune_after=1", "--loss", "logits=kl,hidden=cosine"]


def looked_for(base, *words, **more):
    "The line of a search."
    return ["distill-search", *distil(base, *words, **more)[1:]]


def test_a_search_records_once_goes_on_and_ends_in_a_line_that_repeats_the_best(base, tmp_path, capsys, monkeypatch):
    out, loaded, load = tmp_path / "search", [], sources.load_pretrained
    line = looked_for(base, *SPACE, "--record", str(tmp_path / "teacher"), "k=8", "--out", str(out))
    with monkeypatch.context() as patch:
        patch.setattr(sources, "load_pretrained", lambda weights: loaded.append(weights.name) or load(weights))
        assert main([*line, "--trials", "2"]) == 0
        capsys.readouterr()
        assert main([*line, "--trials", "4"]) == 0
    assert loaded == ["big"] and open_recording(tmp_path / "teacher").settings.hidden == (2, 3)
    said, rows = capsys.readouterr().out, json.loads((out / "record.json").read_text())["trials"]
    assert [f"trial {n}:" in said for n in range(4)] == [False, False, True, True] and len(rows) == 4
    table = (out / "trials.txt").read_text()
    assert table in said and "seed 0 of the search, 0 of every training" in said and len(table.splitlines()) == 5
    assert {path.name for path in out.glob("search.*")} == {"search.png", "search.svg"} and not (out / "trials").exists()
    command, *words = shlex.split(said.strip().splitlines()[-1])
    assert command == "modernllm" and words[0] == "distill" and f"hidden_weight={rows[0]['hidden_weight']}" in words
    assert main([*words, "--out", str(tmp_path / "best")]) == 0
    assert f"{rows[0]['loss']:.3f} after {rows[0]['step']} steps" in capsys.readouterr().out
    assert "search_seed" in refused(capsys, [*line, "search_seed=1"])
    assert "another --out" in refused(capsys, distil(base, "--out", str(out)))
    assert "another --out" in refused(capsys, looked_for(base, "--loss", "hidden=mse", "--out", str(tmp_path / "best")))


@pytest.mark.parametrize("words, said", [
    ({"words": ["--trials", "0"]}, ["--trials", "0"]),
    ({"words": ["layer_maps=[last,[[2,4]]]"]}, ["(2, 4)", "out of range", "0 to 3"]),
    ({"words": ["layer_maps=lst"]}, ["layer_maps", "lst", "uniform"]),
    ({"words": ["projectors=linear,none"]}, ["projector 'none'", "16 wide", "32"]),
    ({"student": "layers=2 hidden=64"}, ["projector 'orthogonal'", "64 wide", "linear"]),
    ({"words": ["layers=last"]}, ["no setting 'layers'", "distill-search --fields"]),
    ({"words": ["lowest_weight=20"]}, ["lowest_weight is 20", "10"]),
    ({"words": ["hidden=none"]}, ["hidden", "hidden=cosine"]),
    ({"teacher": "nowhere"}, ["nowhere"]),
])
def test_a_search_that_does_not_fit_is_told_in_one_line(words, said, base, tmp_path, capsys):
    words = dict(words)
    more = words.pop("words", [])
    loss = [] if "hidden=none" in more else ["--loss", "hidden=mse"]
    err = refused(capsys, looked_for(base, *loss, *more, "--out", str(tmp_path / "out"), **words))
    assert all(word in err for word in said), err
    assert not (tmp_path / "out").exists()


def test_a_search_names_what_is_missing(capsys):
    err = refused(capsys, ["distill-search", "--student", "layers=1", "--data", "my.txt"])
    assert "teacher is missing: modernllm distill-search --teacher" in err
