"""Device, precision and ranks:
what a frozen model is held in, and what becomes of a rank whose neighbour dies.
"""

import json
import os
import platform
import socket
import subprocess
import sys
import time

import pytest
import torch

from minibert.common.runtime import Runtime, start
from test_train import ROOT, folder, options  # noqa: F401  (folder is a fixture)


KERNELS = """
import torch
from minibert.common.runtime import start
start(threads=1)
for rows in (*range(2, 40), 2):
    torch.nn.functional.gelu(torch.ones(rows, 8))
"""


def test_few_kernels_are_kept_of_shapes_that_do_not_come_again():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    environment |= {"PYTHONPATH": str(ROOT), "ONEDNN_VERBOSE": "profile_create"}
    said = subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, env=environment,
                          capture_output=True, text=True, check=True).stdout
    made = [line.split(",") for line in said.splitlines() if "primitive,create:" in line]
    if not made:
        pytest.skip("oneDNN computes no gelu on this machine")
    assert len(made) == 39 and all("create:cache_miss" in line for line in made)  # the first shape too, again


FAULTS = """
import resource, sys, torch
from minibert.common.runtime import start
start("cpu", "fp32", 1, training=sys.argv[1] == "training")
faults = []
for turn in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB, freed at once
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # not of the first turns, for which the heap still grows
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator, left as it is")
@pytest.mark.parametrize("kind", ["training", "serving"])
def test_freed_memory_is_kept_for_training_only(kind):
    faults = int(subprocess.run([sys.executable, "-c", FAULTS, kind], cwd=ROOT, text=True, check=True,
                                env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True).stdout)
    assert faults < 8 if kind == "training" else faults >= 32  # 32 pages of 2 MiB, or 16,384 of 4 KiB


def test_threads_are_the_number_asked_for():
    before = torch.get_num_threads()
    start("cpu", "fp32", before + 1)
    assert torch.get_num_threads() == before + 1
    start("cpu", "fp32", before)


@pytest.fixture
def two_ranks(folder, tmp_path):  # noqa: F811
    """Two ranks of a long run, under way: the processes and the run folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *options(folder, out, steps=100_000)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                                "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              env=environment | {"RANK": str(rank)}) for rank in range(2)]
    deadline = time.time() + 60
    metrics = out / "metrics.jsonl"  # a row tells that both ranks have taken a step
    while time.time() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    yield ranks, out
    for rank in ranks:
        rank.kill()


@pytest.mark.slow
def test_a_rank_whose_neighbour_dies_says_so_and_ends(two_ranks):
    ranks, _ = two_ranks
    ranks[1].kill()
    said = ranks[0].communicate(timeout=30)[1]
    assert ranks[0].returncode == 2 and "another rank has ended" in said and "Traceback" not in said


def test_all_ranks_stop_where_one_is_told_to(two_ranks):
    ranks, out = two_ranks
    ranks[1].terminate()
    said = [rank.communicate(timeout=30)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143, 143] and "Traceback" not in "".join(said)
    (checkpoint,) = (out / "checkpoint").glob("step-*")
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert checkpoint.name == f"step-{last['step']}.safetensors"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_is_scaled_in_fp16_alone(precision):
    assert Runtime(torch.device("cpu"), precision).scaler().is_enabled() == (precision == "fp16")
