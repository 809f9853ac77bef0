"""SIGKILL at random moments, the same command again: the end is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

KILLS = 3
COMMAND = [
    *(sys.executable, "-m", "illama", "train", "digits_micro", "--device", "cpu"),
    *("model.embed_dim=16", "model.depth=2", "model.num_heads=2", "model.drop_path=0.1"),
    *("schedule.epochs=6", "schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=3"),
    *("train.ema_decay=0.9", "train.save_every_steps=3", "train.log_every_steps=2", "train.accumulation=2"),
]


def start(out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def lines(run: Path) -> list[str]:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().splitlines() if metrics.exists() else []


def kill_somewhere(run: Path, numbers: random.Random) -> None:
    """Start the run, let it log some lines more than it had, and kill it in the middle of whatever it does then."""
    process, before = start(run), len(lines(run))
    more = numbers.randrange(1, 15)
    while len(lines(run)) < before + more and process.poll() is None:
        time.sleep(0.002)
    time.sleep(numbers.random() * 0.1)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_runs_end_like_undisturbed_ones(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"moments of the kills: seed {seed}")
    numbers = random.Random(seed)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for _ in range(KILLS):
        kill_somewhere(killed, numbers)
    for run in (killed, whole):
        out, err = (process := start(run)).communicate()
        assert process.returncode == 0, err.decode()
        assert b"test accuracy" in out

    for file in ("last/model.safetensors", "last/ema.safetensors", "best/model.safetensors"):
        one, other = (load_file(run / "checkpoints" / file) for run in (whole, killed))
        assert all(torch.equal(one[name], other[name]) for name in one), file
    timed = ("images_per_s", "data_wait")
    one, other = (
        [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines(run)]
        for run in (whole, killed)
    )
    assert one == other
