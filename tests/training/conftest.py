"""The training runner on the tiny Gemma-2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.training_runs import runner_config

from hsae_lens.training.runner import HierarchicalTopKTrainingRunner


@pytest.fixture
def make_runner(
    tmp_path: Path, tiny_gemma2: Any, tiny_dataset: Any
) -> Callable[..., HierarchicalTopKTrainingRunner]:
    """Makes our runner from what ``runner_config`` takes after its folder."""

    def make(sae: Any = None, **settings: Any) -> HierarchicalTopKTrainingRunner:
        return HierarchicalTopKTrainingRunner(
            runner_config(tmp_path, sae, **settings),
            override_dataset=tiny_dataset,
            override_model=tiny_gemma2,
        )

    return make
