"""Where a step's time, bytes and memory go, and whether it waits: one shape, a few steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from benchmarks.floor import H100, W_ENC, Design, Part, Step, loss_parts, memory, parts
from benchmarks.limits import whole_step
from benchmarks.loss import spread
from benchmarks.problems import LossProblem, Shape
from benchmarks.session import Session
from benchmarks.timing import interleaved, synchronize
from hsae_lens.objective import encode, encode_topk, kernels
from hsae_lens.objective.kernels import bags
from hsae_lens.objective.kernels.launches import Launch, launch_on

OURS = ("_nested_kernel", "_segment_sum_kernel")
SHOWN = 15
COPIES = 10  # at a time, so that launching one does not count
WORD = 4  # bytes: everything here is float32
Call = Callable[[], Any]


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    call: one step of it.
    parts: what our kernels do in it, by arithmetic.
    bounded: bytes that one tensor of it may have by design, however large the batch.
    """

    name: str
    call: Call
    parts: list[Part]
    bounded: int


def profile(run: Session) -> list[dict[str, Any]]:
    """Four rows for each subject: kernels, bytes, allocations, waits; times are of one step.

    The subjects are the nested loss over every budget and over 8, and the encoder, each forward and
    backward, and the whole training step.
    """
    shape = run.shapes[len(run.shapes) // 2]
    copied = _copy_bandwidth(run)
    if run.device == "cpu":
        run.leave_out("host waits", "needs CUDA")
        run.leave_out("bytes per second of our kernels", "needs CUDA")
    rows = []
    for subject in _subjects(run, shape):
        with run.trying(f"profile of {subject.name}"):
            print(f"{subject.name}, {shape}")
            subject.call()  # compiles, and makes what is kept
            found = _kernels(subject.call, run.device, 1 if run.dry else 3)
            if not found:
                run.leave_out(
                    f"kernels of {subject.name}", "the profiler saw none; is CUPTI allowed?"
                )
            for row in (
                {"what": "kernels", "kernels": found[:SHOWN]},
                {"what": "bytes", **_bytes(subject.parts, found, run.device, copied)},
                {"what": "allocations", **_allocations(subject, shape, run.device)},
                {"what": "waits", "waits": _waits(subject.call, run.device)},
            ):
                rows.append({"shape": vars(shape), "of": subject.name, **row})
                _show(row)
    return rows


def _subjects(run: Session, shape: Shape) -> Iterator[Subject]:
    """Made when their turn comes, so that not all are in memory at once."""
    of_shape = (torch.empty(0, device=run.device).device, torch.float32, shape.d_in, shape.k)
    kernel, launch = kernels.select("auto", *of_shape).name, launch_on(*of_shape)
    for name, budgets in (
        ("loss", list(range(1, shape.k + 1))),
        ("loss, 8 budgets", spread(shape.k, 8)),
    ):
        if run.has_time(f"profile of {name}", 5.0):
            step, design = _arithmetic(shape, len(budgets), launch)
            call: Call = partial(LossProblem(shape, run.device).ours, budgets)
            yield Subject(name, call, loss_parts(step, design), _workspace(kernel, design))
    step, design = _arithmetic(shape, shape.k, launch)
    of_encoder = [part for part in parts(step, design) if part.name == W_ENC]
    chunk = encode.CHUNK_BYTES if run.device == "cpu" else encode.CHUNK_BYTES_ON_CUDA
    if run.has_time("profile of the encoder", 5.0):
        yield Subject("encoder", _encoder(shape, run.device), of_encoder, chunk)
    if run.has_time("profile of the whole step", 10.0):
        of_step = [*loss_parts(step, design), *of_encoder]
        call = whole_step(shape, run.device)
        yield Subject("step", call, of_step, max(chunk, _workspace(kernel, design)))


def _arithmetic(shape: Shape, budgets: int, launch: Launch) -> tuple[Step, Design]:
    return Step(**vars(shape), budgets=budgets), Design(
        columns=launch.columns,
        segment_columns=launch.segment_columns,
        stored=budgets <= launch.few_budgets,
    )


def _workspace(kernel: str, design: Design) -> int:
    """Bytes that an implementation works in by design, however large the batch."""
    if kernel == "bags":
        return bags.WORKSPACE_BYTES
    if kernel == "triton" and design.stored:
        from hsae_lens.objective.kernels.triton_kernels import WORKSPACE_BYTES

        return WORKSPACE_BYTES
    return 0


def _encoder(shape: Shape, device: str) -> Call:
    """Forward and backward of the encoder, latents chosen by norm, b_dec subtracted."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device)

    x, scale = normal(shape.tokens, shape.d_in), normal(shape.d_sae).abs() + 0.5
    leaves = [normal(shape.d_in, shape.d_sae), normal(shape.d_sae), normal(shape.d_in)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    d_values = normal(shape.tokens, shape.k)

    def call() -> Any:
        code = encode_topk(x, *leaves, shape.k, selection_scale=scale)
        return torch.autograd.grad(code.values, leaves, d_values)

    return call


def _kernels(call: Call, device: str, steps: int) -> list[dict[str, Any]]:
    """By name, the longest first: calls, seconds and share, of one step.

    On a CPU they are operators, by the time spent in themselves.
    """
    with _profiled(device) as profiled:
        for _ in range(steps):
            call()
        synchronize(device)
    seconds = {
        event.key: (event.count / steps, 1e-6 * _microseconds(event, device) / steps)
        for event in profiled.key_averages()
        if _microseconds(event, device) > 0
    }
    total = sum(s for _, s in seconds.values())
    found = [
        {"name": name, "calls": round(calls, 1), "seconds": s, "share": s / total}
        for name, (calls, s) in seconds.items()
    ]
    return sorted(found, key=lambda kernel: -kernel["seconds"])


def _profiled(device: str, **settings: Any) -> torch.profiler.profile:
    activities = [ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, **settings)


def _microseconds(event: Any, device: str) -> float:
    if device == "cpu":
        return event.self_cpu_time_total
    # An operator is also given the time of the kernels it launched, which are events themselves.
    is_kernel = event.device_type == DeviceType.CUDA and not event.is_user_annotation
    return event.self_device_time_total if is_kernel else 0.0


def _bytes(
    done: list[Part], ran: list[dict[str, Any]], device: str, copied: float
) -> dict[str, Any]:
    """What our kernels ask for and what of it comes from memory, by arithmetic, and how fast.

    Seconds are None where none of them ran on a card.
    """
    l2_bytes = H100.l2_bytes
    if device != "cpu":
        l2_bytes = torch.cuda.get_device_properties(torch.device(device)).L2_cache_size
    card = replace(H100, l2_bytes=l2_bytes)
    asked = sum(part.streamed + part.gathered for part in done)
    moved = sum(memory(part, card) for part in done)
    ours = [kernel for kernel in ran if any(name in kernel["name"] for name in OURS)]
    seconds = sum(kernel["seconds"] for kernel in ours) or None
    return {
        "names": [kernel["name"] for kernel in ours],
        "asked": asked,
        "moved": moved,
        "seconds": seconds,
        "asked_per_s": seconds and asked / seconds,
        "moved_per_s": seconds and moved / seconds,
        "copy_per_s": copied,
    }


def _copy_bandwidth(run: Session) -> float:
    """Bytes read and written per second."""
    big = torch.ones((1 << 20 if run.dry else 512 << 20) // WORD, device=run.device)
    out = torch.empty_like(big)

    def copies() -> None:
        for _ in range(COPIES):
            out.copy_(big)

    timing = interleaved({"copy": copies}, run.rounds, run.device)["copy"]
    return COPIES * 2 * big.nbytes / timing.median


def _allocations(subject: Subject, shape: Shape, device: str) -> dict[str, Any]:
    """The largest of one step, by the operator that made them, and those that need not be.

    Those are as large as every pre-activation or every prefix, and larger than a weight matrix and
    than what is bounded by design.
    """
    with _profiled(device, profile_memory=True) as profiled:
        subject.call()
        synchronize(device)
    sizes = [
        (event.self_cpu_memory_usage if device == "cpu" else event.self_device_memory_usage, event)
        for event in profiled.events()
    ]
    largest = sorted(
        ({"name": event.name, "bytes": size} for size, event in sizes if size > 0),
        key=lambda allocation: -allocation["bytes"],
    )
    may_be = max(WORD * shape.d_sae * shape.d_in, subject.bounded)
    limits = {
        "[B, d_sae]": WORD * shape.tokens * shape.d_sae,
        "[B, K, d_in]": WORD * shape.tokens * shape.k * shape.d_in,
    }
    dense = [
        f"{a['name']}: {a['bytes'] / 2**20:.3g} MiB, as large as {name}"
        for a in largest
        for name, limit in limits.items()
        if a["bytes"] >= limit and a["bytes"] > may_be
    ]
    return {"largest": largest[:5], "dense": dense}


def _waits(call: Call, device: str) -> int | None:
    """How often one step waits for the card; None where there is none."""
    if device == "cpu":
        return None
    synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def _show(row: dict[str, Any]) -> None:
    if row["what"] == "kernels":
        for k in row["kernels"]:
            print(f"  {k['name'][:60]:60s} {k['calls']:6.1f} × {1e3 * k['seconds']:9.3f} ms "
                  f"{100 * k['share']:5.1f} %")  # fmt: skip
    elif row["what"] == "bytes":
        speed = "not timed"
        if row["seconds"]:
            speed = f"{row['asked_per_s'] / 1e9:.0f} and {row['moved_per_s'] / 1e9:.0f} GB/s"
        print(f"  our kernels ask for {row['asked'] / 1e9:.3g} GB, {row['moved'] / 1e9:.3g} GB "
              f"from memory: {speed}; a copy {row['copy_per_s'] / 1e9:.0f} GB/s")  # fmt: skip
    elif row["what"] == "allocations":
        sizes = ", ".join(f"{a['name']} {a['bytes'] / 2**20:.3g} MiB" for a in row["largest"])
        print(f"  largest allocations: {sizes}")
        print(f"  dense that need not be: {'; '.join(row['dense']) or 'none'}")
    elif row["waits"] is not None:
        print(f"  waits for the card: {row['waits']}")
