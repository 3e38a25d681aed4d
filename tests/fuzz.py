"""Random runs and damaged inputs end in a right answer or one clear line.

    python tests/fuzz.py --inputs 10000 --runs 300 --seed 0    # or: make fuzz
    python tests/fuzz.py --only weights:1234                   # one case, with all it says

A case takes a good input, damages it as its seed says, and goes through the door that a user
would. It is an *answer* if the door took the input and what came out is right; a *line* if the
door refused it with an error that the ``hsae`` command shows as one line, naming the file or the
setting. Anything else has FAILED: another exception, a wrong answer, a hang, a dead process, a
given file that was changed, a file that a refused input left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import logging
import math
import multiprocessing
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import torch
from fuzzing.inputs import INPUTS, Kind
from fuzzing.runs import RUNS
from tqdm.auto import tqdm

from hsae_lens.cli import error_in_one_line, is_expected

KINDS: dict[str, Kind] = {**INPUTS, **RUNS}
ANSWER, LINE, FAILED = "answer", "line", "FAILED"


class HangError(BaseException):
    """A case takes too long. Not an Exception: nothing may catch it on the way."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    said: the refusal, or what is wrong.  change: what was done to the input.
    """

    kind: str
    n: int
    verdict: str
    said: str
    change: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.n} {self.verdict} [{self.change}] {self.said[:1000]}"

    @property
    def sort(self) -> str:
        """What similar failures have in common: the text without numbers and quoted words."""
        return self.kind + re.sub(r"\d+|'[^']*'|\[.*?\]", "…", self.said)[:70]


def try_case(name: str, n: int, seed: int = 0, show: bool = False, damage: bool = True) -> Outcome:
    """One case of a kind, from its seed alone; without damage, one of its good inputs."""
    kind, rng = KINDS[name], random.Random(f"{seed}:{name}:{n}")
    with tempfile.TemporaryDirectory(prefix="hsae-fuzz-") as place:
        folder, scratch = Path(place) / "given", Path(place) / "scratch"
        scratch.mkdir()
        good = _specimens(name)
        shutil.copytree(rng.choice(good) if damage else good[n], folder)
        change = kind.change(rng, folder) if damage else "nothing"
        torch.manual_seed(n)
        before = _fingerprint(folder)
        quiet = contextlib.nullcontext(io.StringIO()) if show else _quiet()
        with _data_cache(Path(place) / "cache"), quiet as printed:
            verdict, said = _judge(kind, folder, scratch)
        if _fingerprint(folder) != before:
            verdict, said = FAILED, f"a given file was changed; {said}"
    if "SystemExit" in said:  # argparse has printed why
        said += " " + printed.getvalue().strip().split("\n")[-1]
    return Outcome(name, n, verdict, said.replace(place, "…"), change)


def share_out(n_inputs: int) -> list[tuple[str, int]]:
    """Cases of every kind of input, as many as its share, mixed."""
    total = sum(kind.share for kind in INPUTS.values())
    cases = [
        (name, n)
        for name, kind in INPUTS.items()
        for n in range(math.ceil(n_inputs * kind.share / total))
    ]
    random.Random(0).shuffle(cases)
    return cases


def _judge(kind: Kind, folder: Path, scratch: Path) -> tuple[str, str]:
    try:
        with _time_limit(kind.seconds):
            answer = kind.door(folder, scratch)
    except (Exception, HangError, SystemExit) as error:
        if not isinstance(error, Exception) or not is_expected(error):
            return FAILED, _told(error)
        return _judge_refusal(kind, error, folder, scratch)
    try:
        with _time_limit(kind.seconds):
            kind.check(folder, answer)
    except (Exception, HangError) as error:
        return FAILED, f"taken, but the answer is not right: {_told(error)}"
    return ANSWER, ""


def _judge_refusal(kind: Kind, error: Exception, folder: Path, scratch: Path) -> tuple[str, str]:
    line = error_in_one_line(error)
    left = sorted(str(file.relative_to(scratch)) for file in scratch.rglob("*"))
    pointers = (str(folder), *kind.names)
    if len(line.splitlines()) != 1 or not line.strip():
        return FAILED, f"refused in {len(line.splitlines())} lines: {_told(error)}"
    if not any(pointer in line for pointer in pointers):
        return FAILED, f"refused without naming file or setting: {_told(error)}"
    if left and not isinstance(error, FloatingPointError):  # found out while training: as it was
        return FAILED, f"refused, and left {', '.join(left[:5])}: {_told(error)}"
    return LINE, line


def _told(error: BaseException) -> str:
    """An error with the last of the package's (or SAELens') lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    files = [(Path(frame.filename).name, frame.lineno) for frame in frames]
    places = [f"{file}:{line}" for file, line in files if file != "fuzz.py"]
    text = " ⏎ ".join(str(error)[:500].splitlines())
    return f"{type(error).__name__}: {text} ({' > '.join(places[-4:])})"


@cache
def _workshop() -> tempfile.TemporaryDirectory[str]:
    """Where the good inputs of this process are; it goes with the process."""
    return tempfile.TemporaryDirectory(prefix="hsae-fuzz-")


@cache
def _specimens(name: str) -> list[Path]:
    folders = []
    for n, write in enumerate(KINDS[name].specimens):
        folders.append(Path(_workshop().name) / f"{name}-{n}")
        folders[-1].mkdir()
        write(folders[-1])
    return folders


def _fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): (
            hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "no file"
        )
        for file in folder.rglob("*")
    }


@contextlib.contextmanager
def _data_cache(folder: Path) -> Iterator[None]:
    """Data sets that were read are kept nowhere else."""
    former = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = former


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Keeps what stderr gets, and puts back handlers of signals: SAELens' runner does not."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    printed = io.StringIO()
    logging.disable()
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield printed
    finally:
        logging.disable(logging.NOTSET)
        for s, handler in handlers.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError(f"took more than {seconds:.0f} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


class Worker:
    """A process that tries cases, so that one which kills its process is only one failure."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.seed), daemon=True)
        self.process.start()
        theirs.close()

    def try_case(self, name: str, n: int) -> Outcome:
        """As :func:`try_case`, whatever becomes of the process."""
        try:
            self.ours.send((name, n))
            if self.ours.poll(180 + 2 * KINDS[name].seconds):  # it may have to start first
                outcome: Outcome = self.ours.recv()
                return outcome
            wrong = "hangs outside Python"
        except (EOFError, ConnectionError):
            self.process.join()
            wrong = f"the process died (exit status {self.process.exitcode})"
        self.process.kill()
        self._start()
        return Outcome(name, n, FAILED, wrong, "see --only")

    def close(self) -> None:
        """Lets the process end."""
        self.ours.close()
        self.process.join()


def _work(cases: Any, seed: int) -> None:
    with contextlib.suppress(EOFError):
        while True:
            cases.send(try_case(*cases.recv(), seed=seed))


def summary(outcomes: Sequence[Outcome]) -> str:
    """A row per kind, then an example of each sort of failure and the numbers of its like."""
    counts = Counter((outcome.kind, outcome.verdict) for outcome in outcomes)
    lines = [f"{'kind':12} {'cases':>6} {ANSWER:>7} {LINE:>7} {FAILED:>7}"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        numbers = [counts[kind, verdict] for verdict in (ANSWER, LINE, FAILED)]
        lines.append(f"{kind:12} {sum(numbers):6} " + " ".join(f"{n:7}" for n in numbers))
    failed = sorted((o for o in outcomes if o.verdict == FAILED), key=lambda o: (o.sort, o.n))
    for _, group in groupby(failed, key=lambda o: o.sort):
        first, *others = group
        lines.append(str(first))
        if others:
            lines.append(f"    and {len(others)} like it: {', '.join(str(o.n) for o in others)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged inputs, of all kinds")
    parser.add_argument("--runs", type=int, default=300, help="random training runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a kind, or KIND:NUMBER to repeat one case and see it all")
    parser.add_argument("--lines", action="store_true", help="show the refusals too, once each")
    chosen = parser.parse_args(arguments)
    if chosen.only and ":" in chosen.only:
        name, n = chosen.only.split(":")
        outcome = try_case(name, int(n), chosen.seed, show=True)
        print(outcome)
        return int(outcome.verdict == FAILED)
    cases = share_out(chosen.inputs) + [("runs", n) for n in range(chosen.runs)]
    cases = [case for case in cases if chosen.only in (None, case[0])]
    worker, outcomes = Worker(chosen.seed), []
    with tqdm(cases, unit="case", smoothing=0.02) as bar:
        for case in bar:
            outcomes.append(worker.try_case(*case))
            bar.set_postfix(failed=sum(o.verdict == FAILED for o in outcomes))
    worker.close()
    if chosen.lines:
        print("\n".join(sorted({o.said for o in outcomes if o.verdict == LINE})))
    print(summary(outcomes))
    return int(any(outcome.verdict == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
