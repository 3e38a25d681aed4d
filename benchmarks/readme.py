"""The tables of speed, defaults and conversion, generated from what the benchmarks wrote.

README has the short one of speed, docs/benchmarks.md the full one and that of defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
DEFAULTS = "defaults.json"
CONVERSION = "conversion.json"
CONVERSION_BEGIN, CONVERSION_END = "<!-- conversion: begin -->", "<!-- conversion: end -->"
DEFAULTS_BEGIN, DEFAULTS_END = "<!-- defaults: begin -->", "<!-- defaults: end -->"

SHORT = [
    ("whole step, every budget", "SAELens TopK, one k"),
    ("a whole run, SmolLM2-135M in the loop", "SAELens TopK"),
    ("frontier at 8 budgets, activations cached", "SAELens TopK at each k"),
    ("attribution of 32 prompts at 16 budgets", "a run for each of the 16"),
]
"""What README shows: these measures beside these peers, at the smallest and the largest shape."""


def write(results: Path, root: Path = ROOT) -> None:
    """Replaces the text between the markers of both files."""
    for name, short in (("README.md", True), ("docs/benchmarks.md", False)):
        _between(root / name, BEGIN, END, table(results, short))
    if (results / CONVERSION).exists():
        page = root / "docs/tasks/convert.md"
        _between(page, CONVERSION_BEGIN, CONVERSION_END, conversion_table(results))
    if (results / DEFAULTS).exists():
        page = root / "docs/benchmarks.md"
        _between(page, DEFAULTS_BEGIN, DEFAULTS_END, defaults_table(results))


def conversion_table(results: Path) -> str:
    """Markdown: explained variance by source and steps, means over seeds, and the share of cost."""
    part = json.loads((results / CONVERSION).read_text())["conversion"]
    head = ["source", "trained", "lr", "steps", "of source", "k=1", "4", "8", "16", "32", "64"]
    out = [f"| {' | '.join(head)} | mean cosine |", "|---" * (len(head) + 1) + "|"]
    for (source, mode, steps, lr), rows in _of_one_setting(part["rows"]):
        by_budget = list(zip(*(row["explained_variance"] for row in rows), strict=True))
        figures = [f"{sum(by_budget[n]) / len(rows):.3f}" for n in (0, 2, 3, 4, 5, 6)]
        trained = ["", ""] if source == "from nothing" or not steps else [mode, f"{lr:g}"]
        cosine = f"{rows[0]['cosine']:.2f}" if "cosine" in rows[0] else ""
        cells = [source, *trained, str(steps), f"{steps / 10:g}%", *figures, cosine]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def _of_one_setting(
    rows: list[dict[str, Any]],
) -> Iterator[tuple[tuple[str, str, int, float], list[dict[str, Any]]]]:
    """Rows that differ in the seed only, as they come; without a step all modes are one."""
    keys = [(r["source"], r["mode"], r["steps"], r["lr"]) for r in rows]
    without = set()
    for n, key in enumerate(keys):
        source, _, steps, _ = key
        if key in keys[:n] or (steps == 0 and source in without):
            continue
        without |= {source} if steps == 0 else set()
        yield key, [row for row, own in zip(rows, keys, strict=True) if own == key]


def _between(page: Path, begin: str, end: str, text: str) -> None:
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def defaults_table(results: Path) -> str:
    """Markdown: explained variance by family of activations and setting, and of how many tokens."""
    rows = json.loads((results / DEFAULTS).read_text())["defaults"]["rows"]
    out = [
        "| activations | SAE | lr | k=1 | k=8 | k=32 | outliers too: k=1 | k=8 | k=32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        family = f"{row['family']} ({row['outliers']} outliers)"
        figures = " | ".join(f"{v:.2f}" for v in [*row["without"], *row["with"]])
        out.append(f"| {family} | {row['setting']} | {row['lr']:.1e} | {figures} |")
    return "\n".join(out)


def table(results: Path, short: bool = False) -> str:
    """Markdown: one row per measure, on each device there are figures for."""
    parts = []
    for device in ("cpu", "cuda"):
        file = results / f"{device}.json"
        if not file.exists():
            parts.append(f"On a {'GPU' if device == 'cuda' else 'CPU'}: not measured.")
            continue
        measured = json.loads(file.read_text())
        if measured.pop("dry run", False):
            raise ValueError(f"{file} is of a dry run, whose figures mean nothing: delete it.")
        for facts, figures in _by_machine(measured):
            rows = _shortened(_rows(figures)) if short else _rows(figures)
            if rows:
                where = facts.get("gpu") or f"{facts['threads']} threads of {facts['cpu']}"
                parts.append(f"On {where}, torch {facts['torch']}, medians of interleaved runs:")
                head = ["| measure | size | ours | peer | times faster |", "|---|---|---|---|---|"]
                parts.append("\n".join([*head, *rows]))
    return "\n\n".join(parts)


def _by_machine(figures: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The parts that were measured on one machine, for each."""
    machines = [part["machine"] for part in figures.values()]
    return [
        (facts, {name: part for name, part in figures.items() if part["machine"] == facts})
        for n, facts in enumerate(machines)
        if facts not in machines[:n]
    ]


def _shortened(rows: list[str]) -> list[str]:
    found = []
    for measure, peer in SHORT:
        here = [row for row in rows if row.startswith(f"| {measure} |") and f"| {peer}: " in row]
        found += here[:1] + here[1:][-1:]
    return found


def _rows(figures: dict[str, Any]) -> list[str]:
    out = []
    peers = {
        "saelens": "SAELens TopK, one k",
        "saelens tuned": "SAELens TopK, compiled, fused Adam",
        "ours in saelens": "ours in SAELens' stock trainer",
        "ours, J={K}": "ours, loss at K only",
    }
    for row in _part(figures, "step"):
        for key, name in peers.items():
            if key in row:
                out.append(_ratio("whole step, every budget", row, key, name))
    losses = {
        "naive": "cumulative sum",
        "naive compiled": "torch.compile of it",
        "ours, plain PyTorch": "our scan in plain PyTorch",
        "bags": "plain PyTorch, bags",
        "scan": "plain PyTorch, scan",
        "ours, J={K}": "ours, loss at K only",
        "flex_sae": "flex_sae",
    }
    for row in _part(figures, "loss"):
        for key, name in losses.items():
            if key in row:
                out.append(_ratio("nested loss, forward + backward", row, key, name))
        if "gpu" in figures["loss"]["machine"]:  # few budgets are another kernel's work there
            out += _few_budgets(row)
    for row in _part(figures, "deterministic"):
        times = row["deterministic"]["median"] / row["ours"]["median"]
        ours = f"{_ms(row['deterministic'])} = {times:.2f} × default"
        peer = f"by default: {_ms(row['ours'])}"
        out.append(f"| nested loss, deterministic mode | {_size(row)} | {ours} | {peer} | |")
    out += [_selection(row) for row in _part(figures, "selection")]
    memory = _part(figures, "memory")
    if len(memory) == 2:
        small, large = memory
        name = f"extra memory of the loss, K={large['shape']['k']} ÷ K={small['shape']['k']}"
        ours, naive = (large[key] / max(small[key], 1) for key in ("ours", "naive"))
        out.append(f"| {name} | {_size(large)} | {ours:.2f} | cumulative sum: {naive:.2f} | |")
    for row in _part(figures, "limits"):
        step = f"{1e3 * row['step']['median']:.0f} ms = {row['ratio']:.2f} × floor"
        floor = f"floor from this machine's limits: {1e3 * row['floor']:.0f} ms"
        bare = "" if row.get("trainer", True) else ", without a trainer"
        out.append(f"| whole step, every budget{bare} | {_size(row)} | {step} | {floor} | |")
    for row in _part(figures, "end_to_end"):
        ours, peer = (row[key]["tokens_per_s"] for key in ("ours", "saelens"))
        out.append(
            f"| a whole run, SmolLM2-135M in the loop | {_size(row)} | {ours:.0f} tokens/s "
            f"| SAELens TopK: {peer:.0f} tokens/s | {ours / peer:.2f} |"
        )
    for row in _part(figures, "gemma"):
        out += _gemma(row)
    out += [_evaluation(row) for row in _part(figures, "evaluation")]
    for row in _part(figures, "circuits"):
        out += _circuits(row)
    for row in _part(figures, "spending"):
        out += _spending(row)
    return out


def _few_budgets(row: dict[str, Any]) -> list[str]:
    peers = {"ours": "every budget", "flex_sae": "flex_sae at every budget"}
    return [
        _ratio("nested loss at 8 budgets", row, key, name, ours="ours, 8 budgets")
        for key, name in peers.items()
        if key in row
    ]


def _selection(row: dict[str, Any]) -> str:
    groups = [name for name in row if name.startswith("in groups of ")]
    best = min(groups, key=lambda name: row[name]["median"])
    return _ratio(f"choosing K latents {best}", row, "topk", "torch.topk", ours=best)


def _gemma(row: dict[str, Any]) -> list[str]:
    measure = f"Gemma-2 2B's shape up to layer 12, context {row['context']}, and our step"
    both = row["both"]["tokens_per_s"]
    return [
        f"| {measure} | {_size(row)} | {both:.0f} tokens/s | {name}: "
        f"{row[key]['tokens_per_s']:.0f} tokens/s | {both / row[key]['tokens_per_s']:.2f} |"
        for key, name in (("model", "the model alone"), ("step", "our step alone"))
    ]


def _spending(row: dict[str, Any]) -> list[str]:
    if row["what"] == "calibrate":
        ours = row["ours"]["median"]
        return [f"| thresholds of every mean budget | {_size(row)} | {ours:.1f} s | | |"]
    peers = {"at K": "encoding at K", "stock": "SAELens JumpReLU"}
    return [_ratio("encoding at a mean budget", row, key, name) for key, name in peers.items()]


def _circuits(row: dict[str, Any]) -> list[str]:
    few, many = row["pairs"]
    ours = row["16 budgets"]["median"]
    peers = {"one budget": "one budget alone", "each alone": "a run for each of the 16"}
    return [
        f"| attribution of {few} prompts at 16 budgets | {_size(row)} | {ours:.1f} s | {name}: "
        f"{row[key]['median']:.1f} s | {row[key]['median'] / ours:.2f} |"
        for key, name in peers.items()
    ] + [
        f"| attribution of {many} clean/corrupt pairs at 16 budgets | SmolLM2-135M, one site "
        f"| {row['200 pairs']['median']:.0f} s | | |"
    ]


def _evaluation(row: dict[str, Any]) -> str:
    if row["what"] == "memory":
        (few, small), (every, large) = (item for item in row.items() if "budgets" in item[0])
        return (
            f"| extra memory of the frontier, {every} | {_size(row)} | {large / 2**20:.0f} MiB "
            f"| {few}: {small / 2**20:.0f} MiB | |"
        )
    measure, name = {
        "frontier": ("frontier at 8 budgets, activations cached", "SAELens TopK at each k"),
        "curve": ("explained variance at every budget", "SAELens TopK at k=K alone"),
    }[row["what"]]
    ours, peer = row["ours"]["median"], row["peer"]["median"]
    return f"| {measure} | {_size(row)} | {ours:.1f} s | {name}: {peer:.1f} s | {peer / ours:.2f} |"


def _part(figures: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return figures.get(name, {}).get("rows", [])


def _size(row: dict[str, Any]) -> str:
    s = row["shape"]
    return f"{s['tokens']}×{s['d_in']}, {s['d_sae']} latents, K={s['k']}"


def _ratio(measure: str, row: dict[str, Any], key: str, name: str, ours: str = "ours") -> str:
    times = row[key]["median"] / row[ours]["median"]
    peer = f"{name}: {_ms(row[key])}"
    return f"| {measure} | {_size(row)} | {_ms(row[ours])} | {peer} | {times:.2f} |"


def _ms(timing: dict[str, float]) -> str:
    """Whole milliseconds, and hundredths of them below ten."""
    ms = 1e3 * timing["median"]
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"
