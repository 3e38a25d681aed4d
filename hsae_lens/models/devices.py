"""Where a language model runs and in which number format, settled by looking at the machine."""

from __future__ import annotations

import functools
import logging
import time

import torch

from hsae_lens._util.did_you_mean import did_you_mean

logger = logging.getLogger(__name__)

AUTO = "auto"

MODEL_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What a language model may be opened in, by name; :data:`AUTO` chooses among them."""

# Rows, inputs and outputs of the product that is timed: a small model's layer on half a sequence.
# Milliseconds, and large enough that bfloat16 units show.
PRODUCT = (64, 576, 576)

ROUNDS = 5

WORTH = 0.8  # bfloat16 loses precision: it must be this much faster


def model_device(name: str | torch.device) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        ValueError: if there is no such device, here or at all.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {str(name)!r}: take cpu, cuda, cuda:1 or mps.") from error
    have = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    n = have.get(device.type)
    if n is None or device.type == "cpu":
        return device  # others are for PyTorch to refuse
    if n == 0:
        raise ValueError(f"The device {str(name)!r} was asked for, but PyTorch sees none here.")
    if (device.index or 0) >= n:
        raise ValueError(f"The device {str(name)!r} was asked for, but there are only {n} here.")
    return device


def model_dtype(asked: str | torch.dtype = AUTO, device: str | torch.device = "cpu") -> torch.dtype:
    """The number format to open a language model in.

    Args:
        asked: one of :data:`MODEL_DTYPES`, or :data:`AUTO`: bfloat16 where it is faster than
            float32.
        device: where the model will run.

    Raises:
        ValueError: for an unknown format (the nearest are said) or device.
    """
    if isinstance(asked, torch.dtype):
        return asked
    if asked != AUTO:
        name = str(asked).removeprefix("torch.")
        if name not in MODEL_DTYPES:
            raise ValueError(f"Unknown dtype {asked!r}.{did_you_mean(name, [AUTO, *MODEL_DTYPES])}")
        return MODEL_DTYPES[name]
    dtype, why = _choose(model_device(device))
    _say(f"The language model runs in {dtype_name(dtype)} on {device}: {why}.")
    return dtype


def explain_dtype(device: str | torch.device = "cpu") -> str:
    """Says which number format :data:`AUTO` means on a device, and why."""
    dtype, why = _choose(model_device(device))
    return f"{dtype_name(dtype)} on {device}: {why}."


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def _choose(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies it natively"
        return torch.float32, "the GPU has no bfloat16 units"
    if device.type != "cpu":
        return torch.float32, f"bfloat16 is not tried on {device.type}"
    slow, fast = _milliseconds(torch.float32, torch.bfloat16)
    measured = f"a product takes {fast:.2g} ms in bfloat16, {slow:.2g} ms in float32"
    return (torch.bfloat16 if fast < WORTH * slow else torch.float32), measured


def _milliseconds(*dtypes: torch.dtype) -> list[float]:
    """The best of some runs of each, taken in turn: other work on the machine only adds time.

    On one thread, because two that wait for each other on a busy machine measure the waiting.
    """
    rows, inputs, outputs = PRODUCT
    factors = [
        (
            torch.ones(rows, inputs, dtype=t, device="cpu"),
            torch.ones(outputs, inputs, dtype=t, device="cpu"),
        )
        for t in dtypes
    ]
    best = [float("inf")] * len(dtypes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for n in range(ROUNDS + 1):
            for i, (x, W) in enumerate(factors):
                started = time.perf_counter()
                torch.nn.functional.linear(x, W)
                if n:  # the first one also sets up the library
                    best[i] = min(best[i], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return [seconds * 1e3 for seconds in best]


@functools.cache
def _say(line: str) -> None:
    logger.info(line)  # once
