"""What a run of the benchmarks is told, and how long it may take."""

from __future__ import annotations

import contextlib
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.problems import Shape
from hsae_lens.objective.kernels.probe import in_short

CPU_SHAPES = [Shape(1024, 576, 4608, 64), Shape(4096, 640, 16384, 128)]
GPU_SHAPES = [Shape(b, 2304, 65536, k) for b in (4096, 8192) for k in (32, 64, 128)]


@dataclass
class Session:
    """One run.

    rounds: timed runs of each subject.
    flex: folder of a copy of the authors' kernels.
    deadline: when nothing more is begun, by ``time.monotonic``.
    left_out: what was not measured, and why.
    goes_on: whether a failure is noted and the rest measured, or ends the run.
    failed: what went wrong, a line each.
    refused: implementations that failed their check; they are not timed.
    """

    device: str
    shapes: list[Shape]
    rounds: int = 7
    flex: Path | None = None
    dry: bool = False
    deadline: float = math.inf
    left_out: dict[str, str] = field(default_factory=dict)
    goes_on: bool = False
    failed: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def has_time(self, what: str, seconds: float = 0.0) -> bool:
        """Whether ``what`` may begin, which takes about so long; if not, that is noted."""
        if time.monotonic() + seconds < self.deadline:
            return True
        self.leave_out(what, "no time was left")
        return False

    def leave_out(self, what: str, why: str) -> None:
        self.left_out[what] = why
        print(f"left out: {what}: {why}")

    def fail(self, what: str) -> None:
        self.failed.append(what)
        print(f"FAILED: {what}")

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """What does not fit is left out and what fails is noted; what was measured before stays."""
        if not self.goes_on:
            yield
            return
        try:
            yield
        except torch.OutOfMemoryError:
            self.leave_out(what, "it does not fit into the device's memory")
        except (Exception, SystemExit) as cause:
            if not isinstance(cause, SystemExit):
                traceback.print_exc()
            self.fail(f"{what}: {in_short(cause)}")
        finally:
            if self.device != "cpu":
                torch.cuda.empty_cache()

    def each_shape(
        self, part: str, measure: Callable[[Session, Shape], dict[str, Any]], seconds: float
    ) -> Iterator[dict[str, Any]]:
        """A row for each shape there is time for; one takes about so many seconds."""
        for shape in self.shapes:
            what = f"{part} at {shape}"
            if self.has_time(what, seconds):
                with self.trying(what):
                    yield measure(self, shape)
                gc.collect()  # a compiled peer is in a cycle, with its weights

    def fitting(self, calls: dict[str, Callable[[], Any]], where: str) -> dict[str, Any]:
        """Those that run here: a peer may need more memory than there is, or a compiler."""
        fit = {}
        for name, call in calls.items():
            try:
                call()
            except Exception as cause:
                if name == "ours":
                    raise
                if self.device != "cpu":
                    torch.cuda.empty_cache()
                self.leave_out(f"{name} at {where}", in_short(cause))
            else:
                fit[name] = call
        return fit
