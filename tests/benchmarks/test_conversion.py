"""The benchmark of conversions, on a handful of activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from benchmarks import conversion
from hsae_lens.comparison.material import SAME_KIND, HeldOut, Material


def test_what_is_converted_learns_small_budgets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"K": 4, "BUDGETS": [1, 2, 4], "DRAWN": [1, 4], "BATCH": 64}.items():
        monkeypatch.setattr(conversion, name, value)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 12), dim=-1)
    x = (torch.rand(4000, 24) * (torch.rand(4000, 24) < 0.1)) @ directions * 10
    held = HeldOut(x[3000:], torch.arange(1000), torch.empty(0, 0, dtype=torch.int64))
    material = Material(x[:2500], x[2500:3000], {SAME_KIND: held}, float("inf"))
    source = TopKSAE(TopKSAEConfig(d_in=12, d_sae=24, k=4))
    with torch.no_grad():
        source.W_dec.copy_(directions)
        source.W_enc.copy_(directions.T / 2)
    judge, rows = conversion._Judge(material, "cpu"), []
    for steps in (0, 60):
        sae = conversion._fine_tuned(source, material, steps, 3e-3, 0, only_reorder=False)
        rows.append(judge.row("TopK", sae, 0, steps, conversion.LR))
    before, after = (row["explained_variance"] for row in rows)
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert rows[0]["on average"] == []
    assert len(rows[1]["on average"]) == 1
    nothing = {**rows[1], "source": "from nothing"}
    conversion.draw([nothing, *rows], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    means = conversion.mean_rows([rows[1], {**rows[0], "steps": 60}])
    assert means[1].to_list() == pytest.approx([(before[0] + after[0]) / 2])
