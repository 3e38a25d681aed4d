"""What ``hsae releases`` shows: every release with its SAEs and their saved frontiers."""

from __future__ import annotations

from typing import Any

from hsae_lens._util.columns import LABELS, QUALITIES
from hsae_lens.objective.budgets import powers_of_two
from hsae_lens.releases.directory import RELEASES, Release
from hsae_lens.releases.hub_loader import config_at_hand
from hsae_lens.releases.model_card import frontier_rows, of_rule


def list_releases() -> str:
    """One block per release; nothing is downloaded."""
    return "\n\n".join(_release_lines(release) for release in RELEASES.values()) or "No releases."


def _release_lines(release: Release) -> str:
    place = "folder" if release.local else "hub repository"
    lines = [f"{release.name}", f"  model {release.model}, {place} {release.source}"]
    for sae_id, entry in release.saes.items():
        try:
            cfg = config_at_hand(release.source, entry["path"], release.local)
            shown = _sae_lines(cfg, release.local)
        except (ValueError, OSError) as error:
            shown = [" ".join(str(error).split())]
        lines += [f"  {sae_id}", *(f"    {line}" for line in shown)]
    return "\n".join(lines)


def _sae_lines(cfg: dict[str, Any] | None, local: bool) -> list[str]:
    if cfg is None:
        return ["its files are missing" if local else "not downloaded yet"]
    lines = [f"{cfg['d_in']} → {cfg['d_sae']} latents, {cfg['architecture']}, k 1..{cfg.get('k')}"]
    every = frontier_rows(cfg.get("metadata", {}).get("frontier"))
    rows, mean = of_rule(every, "fixed"), of_rule(every, "mean")
    for text in dict.fromkeys(row["text"] for row in rows):
        here = {row["k"]: row for row in rows if row["text"] == text}
        shown = [k for k in powers_of_two(max(here)) if k in here]
        lines += [f"on {text}:", _line("k", [f"{k:>5}" for k in shown])]
        for column in QUALITIES:
            if all(column in here[k] for k in shown):
                lines.append(_line(LABELS[column], [f"{here[k][column]:5.3f}" for k in shown]))
        lines += _mean_lines([row for row in mean if row["text"] == text])
    return lines


def _mean_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Of a text: what is used of the mean budgets, and how good it is."""
    columns = [("asked on average", "k", "5g"), (LABELS["l0"], "l0", "5.1f")]
    columns += [(LABELS[of], of, "5.3f") for of in QUALITIES]
    return [
        _line(label, [format(row[of], shown) for row in rows])
        for label, of, shown in columns
        if rows and all(of in row for row in rows)
    ]


def _line(label: str, cells: list[str]) -> str:
    return f"  {label:24s} {' '.join(cells)}"
