"""Measuring: interleaved runs, medians, peak memory, and what the machine can do at best."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the runs: median, fastest and slowest."""

    median: float
    fastest: float
    slowest: float

    def to_json(self) -> dict[str, float]:
        return {k: float(f"{v:.4g}") for k, v in vars(self).items()}


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int, device: str = "cpu", warmup: int = 2
) -> dict[str, Timing]:
    """Times the calls in turn, A B C A B C …, so that a drifting machine drifts for all of them."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {n: Timing(statistics.median(s), min(s), max(s)) for n, s in seconds.items()}


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def extra_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes in use at the call's peak beyond those in use before it.

    On CUDA the allocator's own count. On a CPU the system's high-water mark of the process's
    resident memory, after handing free heap back to it; Linux with glibc only.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    kept = call()  # its result is part of the peak
    peak = _status("VmHWM")
    del kept
    return max(peak - before, 0)


def _status(field: str) -> int:
    """A size from the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field}:"))


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0].split(":", 1)[1].strip() if names else name
    facts = {
        "cpu": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device != "cpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def row_of(shape: Any, times: dict[str, Timing], base: str) -> dict[str, Any]:
    """A row of results, printed: times of each subject, as times of one of them."""
    print(shape)
    for name, t in times.items():
        spread = f"({1e3 * t.fastest:.1f}–{1e3 * t.slowest:.1f})"
        ratio = t.median / times[base].median
        print(f"  {name:20s} {1e3 * t.median:9.1f} ms {spread:20s} {ratio:5.2f}x ours")
    return {"shape": vars(shape), **{name: t.to_json() for name, t in times.items()}}
