"""What cannot be trained is said before anything is opened or collected."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.training_runs import runner_config, sae_config
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
)

from hsae_lens.training.runner import HierarchicalTopKTrainingRunner


def test_what_cannot_be_trained_is_said_before_anything_is_collected(
    make_runner: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match=r"d_in is 24, but blocks.1.*width 32: set d_in to 32"):
        make_runner(sae_config(d_in=24))
    near = r"no hook 'blocks.1.hook_resid_pots'.* Did you mean 'blocks.1.hook_resid_post'"
    with pytest.raises(ValueError, match=near):
        make_runner(hook_name="blocks.1.hook_resid_pots")
    head = {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 1}
    with pytest.raises(ValueError, match="width 16"):
        make_runner(**head)
    make_runner(sae_config(d_in=16), **head)
    with pytest.raises(ValueError, match=r"hook_head_index is 5, .* has 2 heads: it must be below"):
        make_runner(sae_config(d_in=16), **head | {"hook_head_index": 5})
    with pytest.raises(ValueError, match=r"hook_head_index is 0, .*no heads: it must be None"):
        make_runner(hook_head_index=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"training_tokens": 0}, "training_tokens must be at least 1, got 0"),
        ({"training_tokens": -5}, "training_tokens must be at least 1, got -5"),
        ({"train_batch_size_tokens": 0}, "train_batch_size_tokens must be at least 1"),
        ({"store_batch_size_prompts": 0}, "store_batch_size_prompts must be at least 1"),
        ({"n_batches_in_buffer": 0}, "n_batches_in_buffer must be at least 1"),
        ({"feature_sampling_window": 0}, "feature_sampling_window must be at least 1"),
        ({"dead_feature_window": 0}, "dead_feature_window must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0 .* got 0.0"),
        ({"lr": math.inf}, "lr must be above 0 .* got inf"),
        ({"lr": math.nan}, "lr must be above 0 .* got nan"),
        (
            {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 21},
            "n_restart_cycles must be at least 1, and there must be a training step .* got 21",
        ),
        ({"device": "banana"}, "Unknown device 'banana'"),
        ({"llm_device": "banana"}, "Unknown device 'banana'"),
        ({"act_store_device": "banana"}, "Unknown device 'banana'"),
        ({"dtype": "float99"}, "float99"),
        ({"output_path": __file__}, "output_path .* is a file. Give another folder"),
        ({"hook_name": "blocks.0.attn.hook_pattern"}, "hook_name must be of a hook with a vector"),
        ({"hook_name": "blocks.0.attn.hook_z"}, "reshape_activations must be .hook_z. at hooks"),
        ({"sae": sae_config(reshape_activations="hook_z")}, "reshape_activations must be .*others"),
        ({"sae": sae_config(decoder_init_norm=0.0)}, "decoder_init_norm must be a finite number"),
        ({"sae": sae_config(decoder_init_norm=math.nan)}, "decoder_init_norm must be a finite"),
        ({"sae": TopKTrainingSAEConfig(d_in=32, d_sae=8, k=9)}, "k must be above 0 and at most"),
        ({"sae": BatchTopKTrainingSAEConfig(d_in=32, d_sae=0, k=1)}, "d_sae must be at least 1"),
        (
            {"sae": TopKTrainingSAEConfig(d_in=32, d_sae=64, k=8, use_sparse_activations=True)},
            "use_sparse_activations must be False for topk on a CPU",
        ),
    ],
    ids=str,
)
def test_settings_are_looked_at_before_anything_is_opened(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        HierarchicalTopKTrainingRunner(
            runner_config(tmp_path, **{"model_name": "would be opened", **settings})
        )
    assert list(tmp_path.iterdir()) == []
