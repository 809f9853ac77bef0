"""What is worth knowing of this project on a GPU, in order of value: `python benchmarks/gpu.py --out FOLDER`.

Kernels and training are tested on the device, kernels and training steps are timed beside torch's and timm's, a run
that crashed is compared to the bit, and CIFAR-10 is trained (`--data PATH`). Each part is a process with a time limit;
what it writes is on disk before the next begins, and summary.md and summary.json tell after each what there is. Parts
that no longer fit into the budget are named. `--device cpu --toy` tries all of that without a GPU.

Where the package is not installed: PYTHONPATH=src python benchmarks/gpu.py ...
Exit codes: 0 all parts done or skipped, 1 one failed or was stopped at its limit, 2 something to fix, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_figures
import torch
from timeboxed import Outcome, Part, Session

from illama.console.text import duration
from illama.errors import UserError
from illama.report import Bullets, Code, Document, Section, Table, markdown
from illama.system.files import write_file
from illama.system.processes import Interrupted, listening

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
TESTS = (PYTHON, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-W", "ignore::UserWarning")
WARM_SHAPES = ("256x12x197x64", "512x3x65x64", "64x12x577x64", "4x12x4097x64")  # of gpu_kernels.py
SHAPES = ("256,12,197,64", "256,3,197,64", "64,12,577,64")
CIFAR = (
    "train.save_every_epochs=1000",
    "train.log_every_steps=97",
    "train.eval_batch=2500",
    "train.precision=bf16",
)
PACE = (  # a part of the images, whose decoding would take longer than the steps
    "data.max_train_images=10240",
    "data.max_eval_images=1000",
    "schedule.epochs=10",
    "schedule.warmup_epochs=1",
    "schedule.softness.cutoff_epochs=1",
    "train.eval_every_epochs=10",
    "train.log_every_steps=20",
)
TOY_RUN = (
    "model.embed_dim=32",
    "model.depth=1",
    "model.num_heads=1",
    "data.max_train_images=64",
    "data.max_eval_images=32",
    "data.workers=0",
    "train.total_batch=32",
    "optimizer.lr_batch=32",
    "train.precision=float32",
    "train.log_every_steps=1",
)


def parts(given: argparse.Namespace) -> list[Part]:
    """All parts, the most valuable first."""
    device, toy, out = given.device, given.toy, given.out.resolve()
    on_cuda = torch.device(device).type == "cuda"
    needs_cuda = None if on_cuda else f"needs CUDA, and --device is {device}"
    needs_data = None if given.data is not None else "needs CIFAR-10: --data PATH"

    def report(name: str) -> list[str]:
        return (
            ["--json", str(out / name / "report.json")] if toy else ["--out", str(out / name)]
        )  # a chart takes seconds

    def attention(name: str, what: str, *more: str) -> Part:
        sizes = ["--shape", "1,2,9,32", "--rounds", "1", "--no-ceilings"] if toy else ["--shape", *SHAPES]
        sizes += [] if toy else ["--dtype", "bf16", "--seconds", "4"]
        command = [PYTHON, "-m", "illama", "bench", "attention", "--device", device, *sizes, *more, *report(name)]
        return Part(name, what, command, 80, figures=gpu_figures.of_bench, timed=True)

    def step(name: str, model: str, batch: int, *more: str, needs: str | None = None) -> Part:
        sizes = ["--model", model, "--batch", str(batch), "--precision", "bf16", "--seconds", "4"]
        if toy:
            sizes = ["--model", "tiny", "--img-size", "32", "--batch", "2", "--rounds", "1", "--no-ceilings"]
        sizes += ["--compile"] if on_cuda else []
        command = [PYTHON, "-m", "illama", "bench", "train", "--device", device, *sizes, *more]
        what = f"training step of {model} beside timm's ViT, batch {batch}" + ", CUDA graphs" * bool(more)
        what += " (toy: tiny, batch 2)" * toy
        command += report(name)
        return Part(name, what, command, 100, 40, figures=gpu_figures.of_bench, timed=True, needs=needs)

    def run(name: str, what: str, *more: str, needs: str | None = None, **rest: Any) -> Part:
        words = [
            "cifar10_tiny",
            "--data",
            str(given.data),
            "--device",
            device,
            *CIFAR,
            *more,
            *(TOY_RUN if toy else ()),
        ]
        command = [PYTHON, "-m", "illama", "train", *words, "--out", str(out / name / "run")]
        return Part(name, what, command, needs=needs_data or needs, figures=gpu_figures.of_run, timed=True, **rest)

    def warming(model: str) -> list[str]:
        words = ["--model", model, "--batch", "256", "--precision", "bf16", "--compile", "--rounds", "1"]
        return [PYTHON, "-m", "illama", "bench", "train", "--device", device, *words, "--no-ceilings"]

    kernels, versions = str(ROOT / "benchmarks" / "gpu_kernels.py"), str(out / "versions" / "versions.json")
    resume = [*TESTS, "tests/training/test_loop.py", "-k"]
    compiled, graphs = "train.compile=true", ("train.compile=true", "train.cuda_graphs=true")
    cutoff = f"schedule.softness.cutoff_epochs={given.epochs // 4}"
    whole = (f"schedule.epochs={given.epochs}", cutoff, "train.eval_every_epochs=10", *(graphs if on_cuda else ()))
    if toy:
        whole = ("schedule.epochs=3", "schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=1")
    return [
        Part(
            "versions",
            "hardware and versions",
            [PYTHON, __file__, "versions", device, versions],
            60,
            figures=gpu_figures.of_versions,
        ),
        Part(
            "kernel-tests",
            "the Triton kernels against float64",
            [*TESTS, "-n", "8", "-m", "kernels", "tests/attention"],
            150,
            figures=gpu_figures.of_tests,
            needs=needs_cuda,
            beside=()
            if toy
            else [
                ["env", "ILLAMA_WARM=1", PYTHON, kernels, os.devnull, *WARM_SHAPES],
                warming("tiny"),
                warming("base"),
            ],
        ),
        Part(
            "training-tests",
            "training on CUDA: no step waits, graphs, the same bits, memory",
            [*TESTS, "-n", "6", "-m", "gpu and not kernels", "-k", "not crash_changes_nothing"],
            150,
            figures=gpu_figures.of_tests,
            needs=needs_cuda,
        ),
        Part(
            "kernel-times",
            "each kernel, its candidates and SDPA",
            [PYTHON, kernels, str(out / "kernel-times" / "kernels.jsonl")],
            150,
            figures=gpu_figures.of_kernels,
            needs=needs_cuda,
            timed=True,
        ),
        step("train-base", "base", 256),
        step("train-tiny", "tiny", 256),
        step("train-tiny-graphs", "tiny", 256, "--compile-mode", "reduce-overhead", needs=needs_cuda),
        Part(
            "resume",
            "a run that crashed and went on, to the bit",
            [*resume, f"crash_changes_nothing and {'4-cpu' if toy and not on_cuda else torch.device(device).type}"],
            120,
            figures=gpu_figures.of_tests,
        ),
        attention("attention", "attention forward, every backend"),
        attention("attention-backward", "attention forward and backward", "--backward"),
        step("train-small", "small", 256, needs="at toy size it is train-base" if toy else None),
        step("train-large", "large", 64, needs="at toy size it is train-base" if toy else None),
        run("cifar-eager", "pace on CIFAR-10, eager", *PACE, limit_s=80, worth_s=45),
        run("cifar-compiled", "pace, compiled", *PACE, compiled, limit_s=80, worth_s=45, needs=needs_cuda),
        run("cifar-graphs", "pace, CUDA graphs", *PACE, *graphs, limit_s=80, worth_s=45, needs=needs_cuda),
        run("cifar-run", f"{given.epochs} epochs of CIFAR-10", *whole, limit_s=math.inf, worth_s=60, grace_s=30),
    ]


def tell_versions(device: str, file: str) -> None:
    """Writes what the numbers are made with, in a process of its own: this one holds nothing on the device."""
    from illama.bench.report import bench_environment

    found = bench_environment(torch.device(device))
    found.pop("command", None)
    if shutil.which("nvidia-smi") is not None:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        found["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    write_file(Path(file), json.dumps(found, indent=1).encode())
    print(json.dumps(found, indent=1))


class Summary:
    """summary.json and summary.md, written anew whenever something has changed.

    Args:
        folder: Where they go.
        budget_s: Of the session.
    """

    def __init__(self, folder: Path, budget_s: float) -> None:
        self._folder, self._budget_s = folder, budget_s

    def write(self, outcomes: list[Outcome], spent_s: float) -> None:
        versions = self._folder / "versions" / "versions.json"
        found = json.loads(versions.read_text()) if versions.is_file() else None
        stored = {
            "command": ["python", *sys.argv],
            "budget_s": self._budget_s,
            "spent_s": round(spent_s, 1),
            "environment": found,
            "parts": [outcome.to_dict() for outcome in outcomes],
        }
        write_file(self._folder / "summary.json", (json.dumps(stored, indent=1) + "\n").encode())
        write_file(self._folder / "summary.md", markdown(self._page(outcomes, found, spent_s)).encode())

    def _page(self, outcomes: list[Outcome], found: dict[str, Any] | None, spent_s: float) -> Document:
        known = ["hardware and versions are not known: that part is not done"]
        if found is not None:
            versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
            known = [f"{found['device']}; {found['processor']}, {found['cpu_cores']} cores", versions]
            known += [found["nvidia_smi"]] if found.get("nvidia_smi") else []
            known.append(f"revision {found['git_revision']}")
        table = Table(
            ("part", "status", "seconds", "exit code"),
            tuple(
                (
                    f"`{part.name}`: {part.what}",
                    f"**{part.status}**{f': {part.why}' if part.why else ''}",
                    f"{part.seconds:.0f}" if part.status != "skipped" else "",
                    "" if part.exit_code is None else str(part.exit_code),
                )
                for part in outcomes
            ),
        )
        figures = [
            Section(part.name, (Table(("", "measured"), tuple(part.figures.items())), Code(shlex.join(part.command))))
            for part in outcomes
            if part.figures
        ]
        lead = f"{duration(spent_s)} of {duration(self._budget_s)}. Each part's output is log.txt in its folder."
        command = Code(shlex.join(["python", *sys.argv]))
        return Document("illama on a GPU", lead, (Section("Parts", (Bullets(tuple(known)), table, command)), *figures))


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("gpu"), help="folder for everything; made if absent (gpu)")
    options.add_argument("--budget", type=float, default=840.0, metavar="SECONDS", help="for all parts (default 840)")
    options.add_argument("--only", nargs="+", metavar="PART", help="only these parts, in the usual order")
    options.add_argument("--limit", nargs="+", default=[], metavar="PART=SECONDS", help="another limit for a part")
    options.add_argument("--data", type=Path, help="CIFAR-10 as a folder of parquet files, for the last parts")
    options.add_argument("--epochs", type=int, default=75, help="of the CIFAR-10 run (default 75)")
    options.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    options.add_argument("--toy", action="store_true", help="toy sizes, to try the whole: seconds for each part")
    options.add_argument("--list", action="store_true", help="list the parts and stop")
    return options.parse_args(words)


def chosen(given: argparse.Namespace) -> list[Part]:
    """The parts that were asked for, with their limits.

    Raises:
        UserError: A part that does not exist, or a value that cannot be.
    """
    try:
        there = torch.device(given.device).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        raise UserError(f"--device {given.device!r} is none; give cuda, cuda:1 or cpu") from None
    if not there and not given.list:
        raise UserError(f"--device {given.device}: there is no CUDA device; give --device cpu --toy to try the parts")
    if not given.budget > 0:
        raise UserError(f"--budget must be above 0 seconds; got {given.budget:g}")
    if given.epochs < 8:
        raise UserError(f"--epochs must be at least 8; got {given.epochs}")
    if given.data is not None and not given.data.exists():
        raise UserError(f"--data {given.data} does not exist; give a folder of CIFAR-10's parquet files")
    found = {part.name: part for part in parts(given)}
    for text in given.limit:
        name, _, seconds = text.partition("=")
        try:
            found[name] = dataclasses.replace(found[name], limit_s=float(seconds))
        except (KeyError, ValueError):
            raise UserError(f"--limit {text}: give PART=SECONDS, parts are {', '.join(found)}") from None
    unknown = [name for name in given.only or () if name not in found]
    if unknown:
        raise UserError(f"--only {unknown[0]}: there is no such part; there are {', '.join(found)}")
    return [part for part in found.values() if given.only is None or part.name in given.only]


def main(words: list[str] | None = None) -> int:
    given = arguments(words)
    try:
        todo = chosen(given)
        if given.list:
            for part in todo:
                limit = "what is left" if math.isinf(part.limit_s) else f"at most {duration(part.limit_s)}"
                print(f"{part.name:20} {part.what} ({part.needs or limit})")
            return 0
        given.out.mkdir(parents=True, exist_ok=True)
    except UserError as error:
        print(f"gpu.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gpu.py: error: --out {given.out} cannot be made: {error.strerror}; give another", file=sys.stderr)
        return 2
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment: dict[str, str] = (
        {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    )
    environment.pop("TRITON_INTERPRET", None)
    if given.toy and torch.device(given.device).type == "cpu":
        environment.setdefault("OMP_NUM_THREADS", "1")  # toy sizes gain nothing by more, and neighbours lose
    summary = Summary(given.out, given.budget)
    session = Session(
        given.out,
        given.budget,
        environment,
        ROOT,
        keep=lambda outcomes: summary.write(outcomes, session.spent_s),
    )
    try:
        with listening():
            outcomes = session.do(todo)
    except Interrupted:
        print("gpu.py: interrupted", file=sys.stderr)
        return 130
    print(given.out / "summary.md")
    return int(any(outcome.bad for outcome in outcomes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["versions"]:
        tell_versions(*sys.argv[2:])
    else:
        sys.exit(main())
