"""`icl-bench kernels bench`: no time without a passed check, ratios, time boxes, lost processes, the crossover."""

import json
import multiprocessing
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from icl_bench import cli
from icl_bench.commands.kernel_tables import bench_tables, speed_curves
from icl_bench.errors import ArgumentError
from icl_bench.kernels.measurement import bench, measure, peers
from icl_bench.kernels.measurement.compilation import PipedProcess
from icl_bench.kernels.measurement.limits import LimitShare
from icl_bench.kernels.measurement.measure import TimedRow, blank_row, measure_contender, measure_tasks
from icl_bench.kernels.measurement.operators import timed_cases
from icl_bench.kernels.measurement.problem import Case, Peer, table_case
from icl_bench.kernels.measurement.scores import MeasuredAttention, MeasuredPower
from icl_bench.kernels.measurement.timing import Times, summarise_times, time_call
from icl_bench.reports.crossover import SpeedCurve, crossing, crossover_figure
from tests.kernels.measurement.test_check import command  # noqa: F401  the fixture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROBLEM = MeasuredPower(t=32, dtype=torch.float32, groups=2, key_heads=2, key=8, value=8, states=False)
SOFTMAX = MeasuredAttention(t=32, dtype=torch.float32, groups=2, key_heads=2, key=8, value=8)
CASE = Case("a case", "table", PROBLEM, ("quadratic", "sdpa flash"))


def fake_time(call, device, seconds):
    call()
    return Times(2.0, 1.0, 3.0, 5, "clock")


def make_wrong(monkeypatch):
    """Let power attention return outputs that are a percent too large."""
    right = MeasuredPower.run
    wrong = lambda *x: {name: 1.01 * y for name, y in right(*x).items()}  # noqa: E731
    monkeypatch.setattr(MeasuredPower, "run", wrong)


def printed(rows):
    from rich.console import Console

    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(bench_tables(rows, speed_curves(rows)))
    return capture.get()


def test_a_form_that_passes_is_timed_with_its_errors(monkeypatch):
    monkeypatch.setattr(measure, "time_call", fake_time)
    row = measure_contender(CASE, "quadratic", CPU, 0.1)
    assert row.forward.median == 2.0 and row.both.p80 == 3.0 and row.ours and row.note == ""
    assert 0 < row.output_error < 1e-5 and 0 < row.gradient_error < 1e-5


def test_a_form_that_fails_its_check_is_never_timed(monkeypatch):
    make_wrong(monkeypatch)

    def refuse(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(measure, "time_call", refuse)
    row = measure_contender(CASE, "quadratic", CPU, 0.1)
    assert row.forward is None and row.both is None and row.broken and "y 0.01 over 1e-05" in row.note
    assert "check failed" in printed([row])


def test_a_peer_that_raises_or_is_absent_is_a_row(monkeypatch):
    def broken(*_):
        raise RuntimeError("no such shape\nand more")

    monkeypatch.setattr(measure, "contender_run", lambda *_: broken)
    assert measure_contender(CASE, "sdpa flash", CPU, 0.1).note == "RuntimeError: no such shape"
    monkeypatch.setattr(measure, "installed", lambda problem, name: False)
    assert measure_contender(CASE, "retention", CPU, 0.1).note == "not installed"


def test_tasks_after_the_deadline_are_out_of_time():
    rows = list(measure_tasks([(CASE, "quadratic")], CPU, time.monotonic() - 1))
    assert [row.note for row in rows] == ["out of time"]


def test_percentiles_and_the_clock(monkeypatch):
    assert summarise_times([5.0, 1.0, 2.0, 4.0, 3.0], "clock")[:3] == (3.0, 2.0, 4.0)
    ticks = iter(i * 0.25 for i in range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    times = time_call(lambda: None, CPU, 2.0)
    assert times.median == 250.0 and times.repeats == 8


@pytest.mark.parametrize("t, window", [(512, 100), (512, 128), (512, 129), (640, 300), (256, 1)])
def test_the_mask_of_blocks_is_the_one_made_from_all_pairs(t, window):
    found = peers.window_mask(t, window, CPU)
    wanted = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < window), None, None, t, t, device="cpu")
    assert torch.equal(found.to_dense(), wanted.to_dense())
    assert torch.equal(found.full_kv_num_blocks, wanted.full_kv_num_blocks)


def test_the_table_holds_all_operators_lengths_and_peers():
    made = timed_cases(CUDA)
    table = [case for case in made if case.part == "table"]
    assert {case.problem.name for case in table} == {
        "power p=2", "power p=2 gated", "power p=1", "power p=1 gated", "power p=1 unnormalised gated", "window",
        "softmax", "delta", "delta gated", "delta vector gate", "delta untied vector gate", "gated linear vector gate",
        "selective scan", "linear scan", "long convolution",
    }  # fmt: skip
    assert {case.problem.t for case in table if case.problem.name == "power p=2"} == {65_536, 131_072, 256}
    found = {(case.problem.op, name) for case in table for name in case.contenders if name in case.problem.peers}
    backends = {"sdpa flash", "sdpa cudnn", "sdpa efficient"}
    assert {name for op, name in found if op == "power"} == {*backends, "fla", "fla unnormalised", "retention"}
    assert {name for op, name in found if op == "attention"} == {*backends, "flex"}
    assert {name for op, name in found if op == "delta"} == {"fla", "compiled chunked"}
    compiled = {"compiled associative", "compiled sequential"}
    assert {name for op, name in found if op == "scan"} == {"mamba-ssm", *compiled}
    assert {name for op, name in found if op == "long-convolution"} == {"three FFTs"}
    assert {*bench.ORDER} == {"ours", "torch", "compiled", "plain", *peers.PACKAGES}
    assert {case.problem.key for case in made if case.part == "crossover"} == {32, 64, 128}
    assert {case.problem.op for case in timed_cases(CUDA, ("delta", "scan"))} == {"delta", "scan"}
    with pytest.raises(ArgumentError, match="--op is one of"):
        timed_cases(CPU, ("norm",))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_every_title_tells_its_case_and_every_contender_is_a_form(device, quick):
    made = timed_cases(torch.device(device), quick=quick)
    titles = [case.title for case in made if case.part == "table"]
    assert len(set(titles)) == len(titles)
    for case in made:
        for name in case.contenders:
            assert case.problem.takes(name) or name in case.problem.peers


def test_subjects_take_turns_case_by_case_and_slow_ones_come_last():
    tasks = [(case, name) for case in timed_cases(CUDA, ("delta", "scan")) for name in case.contenders]
    present = {}
    for case, name in tasks:
        present.setdefault(peers.subject_of(case.problem, name), []).append((case, name))
    turns = bench.turns_of(tasks, present)
    assert sorted(map(tasks.index, (task for _, asked in turns for task in asked))) == [*range(len(tasks))]
    first = [subject for subject, asked in turns if asked[0][0] is tasks[0][0]]
    assert first == ["ours", "fla", "compiled", "plain"]
    fast = [asked[0][0].title for subject, asked in turns if subject not in bench.LATE]
    assert [*dict.fromkeys(fast)] == [*dict.fromkeys(case.title for case, _ in tasks)]
    assert [fast.index(title) for title in fast] == sorted(fast.index(title) for title in fast)
    late = [subject for subject, _ in turns if subject in bench.LATE]
    assert [subject for subject, _ in turns][-len(late) :] == late == sorted(late) and {*late} == {*bench.LATE}
    del present["mamba_ssm"]
    compiled = [asked[0][0].problem.op for subject, asked in bench.turns_of(tasks, present) if subject == "compiled"]
    assert compiled == ["scan", "scan", "delta"]  # the delta rule has another peer


def test_a_subject_whose_process_ended_gets_a_new_one(monkeypatch):
    started = []

    def start(target, subject, device):
        started.append(subject)
        near, far = multiprocessing.Pipe()
        if len(started) == 1:
            far.close()
            process = Silent()
            process.alive = False
            return PipedProcess(process, near)
        threading.Thread(target=target, args=(far, subject, device), daemon=True).start()
        return PipedProcess(Silent(), near)

    monkeypatch.setattr(bench, "start_process", start)
    rows = bench.measure_in_processes([(CASE, "sdpa flash")], CPU, 60.0, lambda line: None, lambda row: None)
    assert started == ["torch", "torch"] and rows[0].forward is not None


def test_a_peer_that_refuses_its_backward_pass_has_a_forward_time(monkeypatch):
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("wrong on this device")

    def build(problem, device):
        return lambda inputs: OneWay.apply(problem.run("torch", inputs)["y"])

    monkeypatch.setattr(measure, "time_call", fake_time)
    monkeypatch.setattr(MeasuredAttention, "peers", {"one way": Peer("torch", build)})
    row = measure_contender(table_case(SOFTMAX, "one way"), "one way", CPU, 0.1)
    assert row.forward.median == 2.0 and row.both is None and row.output_error < 1e-5 and row.gradient_error is None
    assert row.note == "backward refused: RuntimeError: wrong on this device"
    assert "refused" in printed([row])


class Silent:
    """A process that answers nothing."""

    alive = True

    def is_alive(self):
        return self.alive

    def kill(self):
        self.alive = False

    def join(self):
        pass


def test_a_silent_process_is_ended_and_a_dead_one_leaves_rows(monkeypatch):
    monkeypatch.setattr(bench, "SILENCE", 0.0)
    tasks = [(CASE, "quadratic"), (CASE, "sdpa flash")]
    near, far = multiprocessing.Pipe()
    child = PipedProcess(Silent(), near)
    rows = list(bench._ask(child, tasks, time.monotonic()))
    assert [row.note for row in rows] == ["out of time"] * 2 and not child.process.alive
    far.close()
    rows = list(bench._ask(child, tasks, time.monotonic() + 5))
    assert all("died" in row.note for row in rows) and len(rows) == 2


def test_a_measuring_process_answers_every_task():
    near, far = multiprocessing.Pipe()
    server = threading.Thread(target=bench.serve_tasks, args=(far, "ours", CPU))
    server.start()
    tasks, child = [(CASE, "quadratic"), (CASE, "chunked")], PipedProcess(Silent(), near)
    bench.wait_until_ready(child)
    rows = list(bench._ask(child, tasks, time.monotonic() + 60))
    near.close()
    server.join()
    assert [row.contender for row in rows] == ["power quadratic", "power chunked"] and all(row.both for row in rows)


def test_subjects_are_measured_in_processes():
    told, kept = [], []
    tasks = [(CASE, name) for name in ("quadratic", "sdpa flash", "retention")]
    rows = bench.measure_in_processes(tasks, CPU, 60.0, told.append, kept.append)
    assert sorted(kept) == sorted(row for row in rows if row.note != "not installed")
    assert [row.contender for row in rows] == ["power quadratic", "sdpa flash", "retention"]
    assert rows[0].both.method == rows[1].forward.method == "clock" and rows[2].note == "not installed"
    assert told[0].startswith("compiled in") and multiprocessing.active_children() == []


def swept(t, power, softmax, width=64):
    rows = []
    for one, name, ms, p in ((PROBLEM, "auto", power, 2), (SOFTMAX, "sdpa flash", softmax, None)):
        times, problem = Times(ms, ms, ms, 5, "graph"), replace(one, t=t, key=width)
        rows.append(blank_row(Case("", "crossover", problem, (), (width, p)), name)._replace(forward=times, both=times))
    return rows


def test_the_crossover_is_where_the_ratio_passes_one_for_good():
    rows = [*swept(1024, 1.0, 2.0), *swept(2048, 4.0, 2.0), *swept(8192, 2.0, 4.0)]
    forward, both = speed_curves(rows)
    assert forward.points == ((1024, 2.0), (2048, 0.5), (8192, 2.0)) and both.direction == "both"
    assert crossing(forward.points).length == pytest.approx(4096)
    text = printed(rows)
    assert "4k" in text and "forward + backward" in text


def test_a_length_that_one_side_has_no_time_for_is_left_out():
    rows = swept(1024, 1.0, 2.0)
    assert speed_curves([row._replace(forward=None, both=None) if row.ours else row for row in rows]) == []


def test_the_figure_has_a_panel_for_each_width_and_the_same_bytes():
    drawn = [
        SpeedCurve(d, p, way, ((1024, 0.5), (4096, 2.0)))
        for d in (32, 64)
        for p in (1, 2)
        for way in ("forward", "both")
    ]
    picture = crossover_figure(drawn)
    assert picture == crossover_figure(drawn)
    text = picture.decode()
    assert all(word in text for word in ("forward, d = 32", "forward + backward, d = 64", "power p = 2", ">2k<"))


def test_ratios_are_to_the_best_peer_memory_grows_and_limits_are_named():
    def row(name, ms) -> TimedRow:
        times = Times(ms, ms, ms, 5, "graph")
        return blank_row(Case("a case", "table", PROBLEM, ()), name)._replace(forward=times, both=times)

    text = printed([row("auto", 2.0), row("sdpa flash", 5.0), row("sdpa cudnn", 3.0)])
    assert "1.50" in text and "2.50" not in text
    measured = {"peak_mib": 10.0, "longer_mib": 19.0, "compile_seconds": 4.25, "both_limit": LimitShare(0.42, "bytes")}
    text = printed([row("auto", 2.0)._replace(**measured)])
    assert all(word in text for word in ("x 1.90", "42% bytes", "4.2"))


@pytest.fixture
def tiny(monkeypatch):
    made = [
        CASE,
        *(Case("", "crossover", replace(PROBLEM, t=t), ("auto",), (8, 2)) for t in (16, 32)),
        *(Case("", "crossover", replace(SOFTMAX, t=t), ("sdpa flash",), (8, None)) for t in (16, 32)),
    ]
    monkeypatch.setattr(bench, "timed_cases", lambda *_: made)


def test_the_command_prints_rows_with_their_origin_and_draws(command, tiny, tmp_path):  # noqa: F811
    figure, rows = tmp_path / "figures" / "crossover.svg", tmp_path / "rows" / "all.jsonl"
    given = ("--json", "--figure", str(figure), "--rows", str(rows))
    status, out, err = command("bench", "--device", "cpu", *given)
    document = json.loads(out)
    assert status == 0 and document["schema"] == 1 and "figure" in err
    first = document["rows"][0]
    assert first["forward"]["median"] > 0 and first["contender"] == "power quadratic"
    assert set(first) >= {"device", "versions", "date", "revision"} and "fla-core" in first["versions"]
    assert figure.read_bytes().startswith(b"<?xml")
    assert [json.loads(line) for line in rows.read_text().splitlines()] == document["rows"]


def test_compiling_alone_takes_a_folder_and_a_gpu(command, tmp_path):  # noqa: F811
    status, _, err = command("bench", "--device", "cpu", "--compile-only", "--cache", str(tmp_path))
    assert status == 2 and "--compile-only takes --cache and a GPU" in err


def test_the_command_exits_with_3_where_a_check_fails(command, tiny, monkeypatch):  # noqa: F811
    make_wrong(monkeypatch)
    status, out, _ = command("bench", "--device", "cpu")
    assert status == 3 and "check failed" in out


def test_help_does_not_load_torch(monkeypatch):
    import subprocess

    code = "import sys; from icl_bench import cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "kernels" in {group.name for group in cli.app.registered_groups}
