"""What the evaluation's packages export."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest

from hsae_lens import evaluation
from hsae_lens.evaluation import autointerp, latents, suites, tasks


@pytest.mark.parametrize("package", [evaluation, autointerp, latents, suites, tasks])
def test_no_exported_name_hides_a_module(package: Any) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    assert all(hasattr(package, name) for name in package.__all__)
