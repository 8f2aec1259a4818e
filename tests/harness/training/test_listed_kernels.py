"""The list of a fleet's kernels beside those that its whole training would launch, on a GPU that is not there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
SCRIPT = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from icl_bench.kernels import backends

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=0): return 0

triton.runtime.driver.set_active(Driver())
backends.has_triton, backends.check_triton = lambda x: True, lambda x: None  # before a module takes them
from icl_bench.harness.training import ahead, validator
from icl_bench.harness.training.attempt import train_members
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.ahead import can_list, unlaunched
from tests.harness.training.small_runs import CPU, specs

class Writer:
    def log(self, point): ...
    def keep(self, name, data): ...

class Sender(list):
    def __enter__(self): return self
    def __exit__(self, *error): ...
    send = list.append

def test_cell(trainer, cell, members, model):
    tested.append(cell.label)
    return whole(trainer, cell, members, model)

tested, whole, Trainer.test_cell = [], Trainer.test_cell, test_cell
validator.usable_cores = lambda: 1  # only this thread lists
assert can_list()
runs = specs(sys.argv[1], extra=("evaluation.validation=16",))  # a batch, of 8, is no multiple of 16, evaluations are
machine, listed, met = Machine(CPU, keep=("probes",)), Sender(), []
ahead.send_kernels(runs, machine, listed)
with unlaunched(met.append):
    train_members(runs, machine, lambda progress: None, [Writer()], None, True)
assert tested == ["pairs=2", "pairs=4"], tested
known = set(map(str, listed))
print(json.dumps([len(known), [str(source) for source in met if str(source) not in known]]))
"""


@pytest.mark.parametrize("arch", ["power:p=2", "gated-delta-net"])
def test_the_list_has_every_kernel_of_a_run(arch: str, tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", SCRIPT, arch]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    listed, missed = json.loads(done.stdout.splitlines()[-1])
    assert listed > 30 and missed == []
