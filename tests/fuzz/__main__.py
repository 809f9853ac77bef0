"""`python -m tests.fuzz`: damage every kind of input, and say what became of it."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import secrets
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import illama

if TYPE_CHECKING:
    from tests.fuzz.arena import Case, Ended, Kind

FIXED = ""  # the seed that is taken unless another is asked for
_PATIENCE_S = 15  # between lines of progress
_NOT_HERE = ("illama.__main__", "illama.attention.triton")  # the first runs a command, the second needs Triton
_NEEDED = (
    *("sklearn.datasets", "matplotlib.pyplot", "torch.utils.tensorboard", "torch._dynamo", "timm.data"),
    *("pyarrow.parquet", "torch.distributed", "scipy.stats", "scipy.optimize", "tests.fuzz.kinds"),
)


def main() -> int:
    """Run cases, all or those that are asked for; 1 where one of them fails."""
    asked = _arguments()
    seed = secrets.token_hex(4) if asked.seed == "random" else asked.seed
    root = asked.root / f"{os.getpid()}"
    (root / "home").mkdir(parents=True)
    try:
        _import_everything(root)
        kinds = _kinds(root, self_test=asked.self_test)
        cases = len(kinds) if asked.self_test else asked.cases
        todo = _named(asked.case, kinds) if asked.case else spread(kinds, cases, asked.only)
        if seed != FIXED:
            print(f"seed {seed}: ILLAMA_FUZZ_SEED={seed} repeats all of this", flush=True)
        began = time.monotonic()
        found = _run(todo, kinds, seed, root, tell_all=bool(asked.case))
        print(_table(found, time.monotonic() - began))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps({name: [asdict(one) for one in ends] for name, ends in found.items()}))
    return int(any(one.failure for ends in found.values() for one in ends))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("case", nargs="*", help="KIND:NUMBER, to repeat some; all by default")
    parser.add_argument("--cases", type=int, default=10_000, help="how many, spread over the kinds")
    parser.add_argument("--only", nargs="*", help="kinds")
    parser.add_argument("--seed", default=os.environ.get("ILLAMA_FUZZ_SEED", FIXED), help='any text, or "random"')
    parser.add_argument("--root", type=Path, default=Path("build/fuzz"), help="a folder to work and keep failures in")
    parser.add_argument("--json", type=Path, help="a file for the ends of all cases")
    parser.add_argument("--self-test", action="store_true", help="commands that do what must not happen")
    return parser.parse_args()


def _import_everything(root: Path) -> None:
    """All that commands import, without starting a thread: none of them would live in the forks."""
    os.environ |= {
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),  # with the compiled kernels
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "HOME": str((root / "home").absolute()),
        "MPLCONFIGDIR": str((root / "home").absolute()),
    }
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        torch.set_num_threads(1)
        for module in (*_ours(), *_NEEDED):
            importlib.import_module(module)
    from illama import native
    from illama.data.sources.formats import readable_formats

    readable_formats()
    native.why_not()  # compiled here, if they are not yet
    gc.collect()
    gc.freeze()  # what a collection would write into, the forks would have to copy


def _ours() -> list[str]:
    """All modules of the package that is tested."""
    names = [one.name for one in pkgutil.walk_packages(illama.__path__, "illama.")]
    return [name for name in names if not name.startswith(_NOT_HERE)]


def _kinds(root: Path, *, self_test: bool) -> Mapping[str, Kind]:
    """What there is to damage, after the valid inputs have been made in a process that may start threads."""
    from tests.fuzz.forbidden import FORBIDDEN
    from tests.fuzz.kinds import kinds
    from tests.fuzz.seeds import Seeds, make

    if self_test:
        return FORBIDDEN
    seeds, log = (root / "seeds").absolute(), root / "seeds.log"
    seeds.mkdir()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            make(seeds)
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"the seeds cannot be made:\n{log.read_text()}")
    return kinds(Seeds(seeds))


def spread(kinds: Mapping[str, Kind], cases: int, only: Sequence[str] | None) -> list[tuple[str, int]]:
    """Name and number of each case."""
    chosen = {name: kind for name, kind in kinds.items() if not only or name in only}
    total = sum(kind.share for kind in chosen.values())
    counts = {name: max(1, round(cases * kind.share / total)) for name, kind in chosen.items()}
    todo = [(name, number) for name, count in counts.items() for number in range(count)]
    Random(0).shuffle(todo)  # each part of the time tells of all kinds
    return todo


def _named(words: Sequence[str], kinds: Mapping[str, Kind]) -> list[tuple[str, int]]:
    todo = []
    for word in words:
        name, _, number = word.rpartition(":")
        if name not in kinds or not number.isdigit():
            raise SystemExit(f"{word} is no KIND:NUMBER; kinds: {', '.join(kinds)}")
        todo.append((name, int(number)))
    return todo


def _run(
    todo: Sequence[tuple[str, int]], kinds: Mapping[str, Kind], seed: str, root: Path, *, tell_all: bool
) -> dict[str, list[Ended]]:
    """One case after the other; failures are told, and their folders kept, as they come."""
    from tests.fuzz.arena import fresh, run_case

    found: dict[str, list[Ended]] = {}
    began = said = time.monotonic()
    for done, (name, number) in enumerate(todo, start=1):
        case = fresh((root / "case").absolute())
        kinds[name].build(case, Random(f"{seed}{name}:{number}"))
        ended = run_case(kinds[name], case)
        found.setdefault(name, []).append(ended)
        if ended.failure or tell_all:
            print(_told(name, number, seed, ended, case), flush=True)
        if ended.failure:
            kept = root.parent / "failures" / f"{name.replace(' ', '-')}-{seed}{number}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            case.folder.rename(kept)
        if time.monotonic() - said > _PATIENCE_S:
            said = time.monotonic()
            bad = sum(one.failure is not None for ends in found.values() for one in ends)
            left_min = (said - began) / done * (len(todo) - done) / 60
            print(f"{done} of {len(todo)} cases, {bad} failed, {left_min:.0f} min left", file=sys.stderr, flush=True)
    return found


def _told(name: str, number: int, seed: str, ended: Ended, case: Case) -> str:
    """One case for people, with the command that repeats it."""
    words = " ".join(word if len(word) < 200 else f"{word[:200]}..." for word in case.words)
    again = f"{f'ILLAMA_FUZZ_SEED={seed} ' if seed else ''}.venv/bin/python -m tests.fuzz {f'{name}:{number}'!r}"
    return "\n  ".join(
        [
            f"{name}:{number} {ended.failure or 'is fine'} ({ended.seconds:.1f} s, {ended.peak_bytes >> 20} MB)",
            f"illama {words!a}{f' with {case.variables}' if case.variables else ''}",
            f"exit code {ended.code}: {ended.line[-500:]!a}",
            f"again: {again}",
        ]
    )


def _table(found: Mapping[str, Sequence[Ended]], seconds: float) -> str:
    header = (
        "kind",
        "cases",
        "answered",
        "refused",
        "tracebacks",
        "signals",
        "hangs",
        "other",
        "most MB",
        "slowest s",
        "all s",
    )
    rows: list[tuple[object, ...]] = []
    everything = [one for own in found.values() for one in own]
    for name, ends in [*sorted(found.items()), ("all", everything)]:
        failures = [one.failure for one in ends if one.failure]
        counted = [sum(word in one for one in failures) for word in ("traceback", "signal", "hangs")]
        good = [one.code for one in ends if not one.failure]
        peak, slowest = max(one.peak_bytes for one in ends) >> 20, max(one.seconds for one in ends)
        refused = sum(code != 0 for code in good)
        other = len(failures) - sum(counted)
        took = sum(one.seconds for one in ends)
        cells = (len(ends), len(good) - refused, refused, *counted, other, peak, f"{slowest:.1f}", f"{took:.0f}")
        rows.append((name, *cells))
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        f"{row[0]!s:<{widths[0]}}" + "".join(f"  {row[i]!s:>{widths[i]}}" for i in range(1, len(row)))
        for row in (header, *rows)
    ]
    return "\n".join([*lines, f"{len(rows) - 1} kinds in {seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
