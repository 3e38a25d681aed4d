"""What is chosen by card and shape: block sizes, warps, and ways to the same result.

``python -m benchmarks gpu`` finds what is fastest on a card and writes it into the table. Cards and
shapes that are not in it get what is nearest, or the defaults, which are reasoned and not measured
(docs/kernels.md). The card "cpu" is Triton's interpreter, which pays by the program.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hsae_lens._util.atomic_files import replacing_file

TABLE = Path(__file__).with_name("launches.json")


class Launch(NamedTuple):
    """One way to launch the kernels. Columns, ranks, rows and warps are powers of two.

    columns, ranks, warps, stages: of the nested kernel: columns of d_in per program, decoder rows
        read together, warps per program, loads in flight.
    segment_columns, rows, segment_warps, segment_stages: of the segment sum; rows added together.
    few_budgets: up to as many budgets, each suffix sum is stored once and d_W_dec is a segment sum.
        With more of them it is added to atomically, unless the result must be deterministic.
    selection_group: the K largest latents are chosen in two stages, from groups of so many; 0: by
        ``torch.topk`` alone.
    """

    columns: int = 64
    ranks: int = 8
    warps: int = 4
    stages: int = 2
    segment_columns: int = 128
    rows: int = 16
    segment_warps: int = 4
    segment_stages: int = 2
    few_budgets: int = 8
    selection_group: int = 0


DEFAULT = Launch()


@functools.cache
def launch_on(device: torch.device, dtype: torch.dtype, d_in: int, k: int) -> Launch:
    """:func:`launch_for` the card that this device is."""
    return launch_for(card_of(device), dtype, d_in, k)


def card_of(device: torch.device) -> str:
    """The card's name, as the table has it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def launch_for(card: str, dtype: torch.dtype, d_in: int, k: int) -> Launch:
    """The launch measured on this card for the nearest d_in and K; the default if none was.

    Batch and d_sae are not looked at: what wins was found at 65,536 latents.
    """
    name = str(dtype).removeprefix("torch.")
    known = [entry for entry in _table().get(card, ()) if entry["dtype"] == name]
    if not known:
        return DEFAULT

    def distance(entry: dict[str, Any]) -> float:
        return abs(math.log(entry["d_in"] / d_in)) + abs(math.log(entry["k"] / k))

    return Launch(**min(known, key=distance)["launch"])


def record(
    card: str, dtype: torch.dtype, d_in: int, k: int, launch: Launch, table: Path = TABLE
) -> None:
    """Puts what is fastest for a shape on a card into the table; written beside and renamed."""
    everything = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    shape = {"dtype": str(dtype).removeprefix("torch."), "d_in": d_in, "k": k}
    others = [e for e in everything.get(card, ()) if {n: e[n] for n in shape} != shape]
    changed = {n: v for n, v in launch._asdict().items() if v != getattr(DEFAULT, n)}
    everything[card] = [*others, {**shape, "launch": changed}]
    with replacing_file(table) as fresh:
        fresh.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    _table.cache_clear()
    launch_on.cache_clear()


@functools.cache
def _table() -> dict[str, list[dict[str, Any]]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))
