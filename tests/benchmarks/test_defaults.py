"""The families of the benchmark of defaults, and how it judges."""

from __future__ import annotations

import pytest
import torch
from helpers import training_sae

from benchmarks import defaults


def test_the_synthetic_family_has_a_long_mean_and_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "TRAINED", 4096)
    x = defaults._synthetic("cpu")
    norms = x.norm(dim=-1)
    usual = norms < defaults.FACTOR * norms.median()
    assert 1 <= (~usual).sum() <= 20
    assert norms[~usual].mean() == pytest.approx(90_000, rel=0.02)
    assert x[usual].mean(0).norm() == pytest.approx(6000, rel=0.01)
    assert norms.median() == pytest.approx(6200, rel=0.02)
    assert (x[usual] - x[usual].mean(0)).norm(dim=-1).mean() == pytest.approx(1500, rel=0.02)


def test_explained_variance_is_of_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "BUDGETS", [1, 8])
    monkeypatch.setattr(defaults, "K", 8)
    sae = training_sae()
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert defaults.explained(sae, x)[1] == pytest.approx(1 - error.item(), abs=1e-4)
    assert len(defaults.explained(sae, x)) == 2
