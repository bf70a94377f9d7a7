"""The bench: all sides do the same work, the arithmetic of the result, what it leaves, refusals."""

import json
import sys
from dataclasses import replace
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from modernllm.cli.app import main
from modernllm.core.config import InputError, RunFailed
from modernllm.core.records import Record
from modernllm.core.runs import Run
from modernllm.benchmarking import bench as benches
from modernllm.benchmarking import profiler
from modernllm.benchmarking.bench import (
    SHAPES,
    TASKS,
    ZipfBatches,
    bench_eval,
    bench_generate,
    bench_train,
    new_model,
    own_limit,
    own_products,
)
from modernllm.benchmarking.peers import GPT2, TRAIN_PEERS, train_peers
from modernllm.benchmarking.profiler import KINDS, by_kind, kind
from modernllm.benchmarking.timing import OURS, Bench, metric_name
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training import utilisation
from modernllm.training.config import TrainConfig

LLAMA, NANO = TRAIN_PEERS


def test_all_sides_train_alike_and_threads_are_restored():
    before = torch.get_num_threads()
    result = bench_train("tiny", threads=1, rounds=3, seconds=0, steps=3, batch_size=4, context=16, compiled_peers=False)
    assert len(result.rounds) == len(result.limits) == 3 and torch.get_num_threads() == before
    assert list(result.rounds[0]) == [OURS, LLAMA, NANO]
    assert result.checks[OURS] == pytest.approx(result.checks[LLAMA], abs=0.01)
    assert max(result.checks.values()) < 6.2  # of ln 512 = 6.24: every side learns
    assert all(0 < share < 1 for side in result.rounds[0] for share in result.share(side))
    assert LLAMA in str(result) and f"{median(result.ratios(NANO)):.2f}" in str(result)


def test_compiled_peers_are_sides_of_their_own_with_the_losses_of_eager_ones(monkeypatch):
    "The graphs that `torch.compile` captures are run without a C++ compiler, which is most of its time."
    compile_, graphs = torch.compile, []

    def captured(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda loss: compile_(loss, backend=captured, fullgraph=True))
    monkeypatch.setattr(benches, "missing_compiler", lambda device: "")
    result = bench_train("tiny", threads=1, rounds=1, seconds=0, steps=3, batch_size=4, context=16)
    assert list(result.rounds[0]) == list(result.first) == [OURS, LLAMA, f"{LLAMA}, compiled", NANO, f"{NANO}, compiled"]
    assert len(graphs) == 2  # one of each peer, compiled once
    assert result.checks[f"{LLAMA}, compiled"] == pytest.approx(result.checks[LLAMA], rel=1e-4)
    assert all(metric_name(f"{peer}, compiled") == f"{metric_name(peer)}_compiled" for peer in (LLAMA, NANO))
    with torch.random.fork_rng():
        losses, given = [], (new_model("tiny", 16), ZipfBatches(512, 4, 16), TrainConfig(max_steps=1))
        for make in train_peers(compiled=True).values():
            torch.manual_seed(0)
            loop = make(*given)
            losses.append([loop.run(1) for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[3] == pytest.approx(losses[2], rel=1e-4)


def test_peers_read_their_losses_once_a_turn_and_batches_are_drawn_before_it(monkeypatch):
    copies, item = [], torch.Tensor.item
    loop = TRAIN_PEERS[LLAMA](new_model("tiny", 16), ZipfBatches(512, 2, 16), TrainConfig(max_steps=1))
    with monkeypatch.context() as counted:
        counted.setattr(torch.Tensor, "item", lambda self: copies.append(self.shape) or item(self))
        mean = loop.run(3)
    assert len(copies) == 1 and 5 < mean < 7
    reads, get, draw = [], ZipfBatches.__getitem__, ZipfBatches.draw

    def drawn_before(self, numbers):
        before = len(reads)
        draw(self, numbers)
        del reads[before:]

    monkeypatch.setattr(ZipfBatches, "draw", drawn_before)
    monkeypatch.setattr(ZipfBatches, "__getitem__", lambda self, i: reads.append((i, i in self.drawn)) or get(self, i))
    bench_train("tiny", threads=1, rounds=2, seconds=0, steps=2, batch_size=2, context=8, compiled_peers=False)
    turns = [i for i, drawn in reads if drawn]
    assert sorted(turns) == sorted(3 * [*range(6)])  # of three sides: three turns of two steps, the first of which is not counted
    assert {i for i, drawn in reads if not drawn} <= {0}  # whose FLOPs are counted before all turns



def test_without_a_compiler_peers_are_eager_and_one_line_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = bench_train("tiny", threads=1, rounds=1, seconds=0, steps=1, batch_size=2, context=8)
    assert result.peers == [LLAMA, NANO]
    assert str(result).splitlines()[-1] == "peers are not compiled here: no C++ compiler: no-such-compiler was not found"


def test_generation_and_evaluation_do_the_same_work():
    text = bench_generate("tiny", threads=1, rounds=2, seconds=0, prompt=5, new=9)
    assert text.tokens == 9 and set(text.checks.values()) == {1.0} and len(text.peers) == 2
    score = bench_eval("tiny", threads=1, rounds=2, seconds=0, windows=3, batch_size=2, context=16)
    assert score.tokens == 48 and score.checks[OURS] == pytest.approx(score.checks[LLAMA], rel=1e-5)


def test_batches_depend_on_their_number_alone():
    batches = ZipfBatches(50, 3, 7)
    first, again, other = batches[4], ZipfBatches(50, 3, 7)[4], batches[5]
    assert torch.equal(first["input_ids"], again["input_ids"]) and not torch.equal(first["input_ids"], other["input_ids"])
    assert torch.equal(first["input_ids"][:, 1:], first["targets"][:, :-1])


def test_the_10m_shape_has_ten_million_parameters_on_every_side():
    c = ModernLLMConfig.checked(**SHAPES["10m"])
    with torch.device("meta"):
        ours, gpt = ModernDecoderLM(c), GPT2(c.vocab_size, c.hidden_size, c.num_hidden_layers, c.num_attention_heads, 256)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, gpt)]
    assert all(10_000_000 < size < 11_000_000 for size in sizes)


def test_the_peer_looks_back_only():
    torch.manual_seed(0)
    gpt, ids = GPT2(20, 16, 2, 2, 8).eval(), torch.randint(0, 20, (1, 8))
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % 20
    a, b = gpt(ids), gpt(changed)
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5:], b[:, 5:])


def test_the_rate_of_own_products():
    config = ModernLLMConfig.checked(**SHAPES["tiny"], num_key_value_heads=1)
    products = own_products(config, 2, 8, torch.device("cpu"))
    sizes = sum(p.numel() for p in ModernDecoderLM(config).parameters() if p.ndim == 2)
    assert sum(2 * times * m * k * n for times, m, k, n in products) == 6 * sizes * 16
    assert own_limit(products, torch.device("cpu")) > 0


def made() -> Bench:
    seconds = {OURS: [1.0, 2.0, 1.0], "a, peer-1": [2.0, 2.0, 1.5]}
    rounds = [dict(zip(seconds, times)) for times in zip(*seconds.values())]
    return Bench("train", "tiny", 7, "no work", tokens=60, threads=1, device="CPU", rounds=rounds,
                 checks=dict.fromkeys(seconds, 6.0), limits=[(100.0, 50.0)] * 3, flops=(50.0, 20.0))


def test_medians_and_ratios():
    result = made()
    assert result.speed(OURS) == 60 and result.ratios("a, peer-1") == [2.0, 1.0, 1.5] and result.share(OURS) == (0.5, 0.4)
    line = str(result).splitlines()[3]
    assert line.split() == ["a,", "peer-1", "30", "1.50", "1.00", "to", "2.00", "6.000"]
    assert metric_name("a, peer-1") == "a_peer_1"


def test_the_ratio_that_counts_is_to_the_fastest_side(monkeypatch, tmp_path):
    seconds = {OURS: [1.0, 1.0, 1.0], "a": [3.0, 3.0, 1.0], "a, compiled": [2.0, 1.5, 2.0]}
    result = replace(made(), rounds=[dict(zip(seconds, times)) for times in zip(*seconds.values())],
                     checks=dict.fromkeys(seconds, 6.0), limits=[], first={OURS: 1.0, "a": 4.0, "a, compiled": 40.0})
    assert result.fastest == "a, compiled" and "fastest peer: a, compiled; ratio 2.00\n" in str(result)
    assert "not counted: modernllm 1.0 s, a 4.0 s, a, compiled 40.0 s" in str(result)
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    run = Run.start(study="bench", variant="train-tiny", seed=0, profile="cpu", params={})
    result.record_into(run)
    metrics = run.finish().metrics
    assert metrics["train_ratio_fastest_peer"].value == metrics["train_ratio_a_compiled"].value == 2.0
    assert metrics["train_ratio_fastest_peer_low"].value == 1.5  # not the 1.0 of the slower side's one fast round
    assert metrics["train_a_compiled_first_turn"].value == 40.0


def test_the_command_leaves_a_record(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    monkeypatch.setitem(TASKS, "train", lambda shape, **given: made())
    assert main(["bench", "train", "tiny", "--rounds", "7"]) == 0
    assert "ratio" in capsys.readouterr().out
    record = Record.make(json.loads((tmp_path / "bench/train-tiny.json").read_text()))
    assert record.metrics["train_ratio_a_peer_1"].value == 1.5
    assert record.metrics["train_modernllm_share_of_own_products"].value == 0.4
    assert record.metrics["train_ratio_fastest_peer_low"].value == 1.0
    assert record.command.startswith("modernllm bench train tiny --")
    assert "--rounds 7" in record.command
    assert record.curves["train_modernllm_seconds"].y == [1.0, 2.0, 1.0]


def test_memory_is_reported_by_side(monkeypatch, tmp_path):
    monkeypatch.setenv("MODERNLLM_RUNS", str(tmp_path))
    monkeypatch.setattr(benches, "peak_memory", lambda side, *_, **__: (2**20 * len(side), 2**30))
    assert main(["bench", "memory", "tiny"]) == 0
    metrics = Record.make(json.loads((tmp_path / "bench/memory-tiny.json").read_text())).metrics
    assert metrics["modernllm_training_memory"].value == 9
    assert metrics["training_memory_ratio_transformers_llama"].value == 9 / 18


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    rise, whole = benches.peak_memory(OURS, "tiny", batch_size=2, context=8, threads=1)
    assert 0 <= rise < whole and whole > 50 * 2**20
    monkeypatch.setattr(benches, "PROGRAM", "from math import nothing")
    with pytest.raises(RunFailed, match=f"the training of {OURS} in a process of its own failed: .*ImportError"):
        benches.peak_memory(OURS, "tiny")


def test_kinds():
    assert kind("aten::mm") == "matrix products" and kind("aten::_fused_adamw_") == "optimizer"
    seconds = by_kind(lambda: torch.ones(64, 64) @ torch.ones(64, 64))
    assert list(seconds.index) == [*KINDS, "the rest"] and seconds["matrix products"] > 0


def test_on_a_gpu_kinds_have_the_time_of_the_kernels_that_operations_launched(monkeypatch):
    rows = [("aten::mm", DeviceType.CPU, 7.0, 5e6), ("ampere_bf16_s16816gemm", DeviceType.CUDA, 0.0, 5e6),
            ("aten::relu", DeviceType.CPU, 9.0, 1e6)]
    events = [SimpleNamespace(key=key, device_type=place, self_cpu_time_total=cpu, self_device_time_total=gpu)
              for key, place, cpu, gpu in rows]
    asked, waits = [], []

    class Profile:
        def __init__(self, activities):
            asked.extend(activities)

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None
        key_averages = lambda self: events

    monkeypatch.setattr(profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    seconds = by_kind(lambda: None)
    assert asked == [ProfilerActivity.CPU, ProfilerActivity.CUDA] and waits
    assert seconds["matrix products"] == 5 and seconds["the rest"] == 1 and seconds.sum() == 6


def test_generation_in_rows_and_in_bfloat16():
    text = bench_generate("tiny", threads=1, rounds=1, seconds=0, prompt=5, new=4, batch_size=3, dtype="bfloat16")
    assert text.tokens == 12 and text.work == "batch 3, 5 synthetic tokens of prompt, 4 new, bfloat16"
    assert set(text.checks) == {OURS, *text.peers} and text.checks[OURS] == 1


def test_products_are_measured_without_touching_the_random_numbers_of_a_run():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    own_limit([(1, 4, 8, 4)], torch.device("cpu"))
    utilisation.matmul_limit(torch.device("cpu"), torch.float32, seconds=0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("call, named", [
    (lambda: bench_train("mediun"), "did you mean 'medium'"), (lambda: bench_train(threads=0), "threads: given 0"),
    (lambda: bench_train(steps=0), "steps: given 0"), (lambda: bench_generate(new=0), "new: given 0"),
    (lambda: bench_eval(rounds=0), "rounds: given 0"), (lambda: benches.peak_memory("llama"), "side"),
])
def test_bad_input(call, named):
    with pytest.raises(InputError, match=named):
        call()
