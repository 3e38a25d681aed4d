"""Names of SAELens and TransformerLens that they do not promise to keep, all in one place.

They were read in the versions of :data:`READ_IN`. Where a newer one has moved or dropped a name,
``tests/test_private_names.py`` says which.
"""

from __future__ import annotations

from typing import Any

from sae_lens import SAE, LanguageModelSAETrainingRunner, SAETrainer, SAETransformerBridge
from sae_lens.config import _validate_seqpos as validate_seqpos
from sae_lens.llm_sae_training_runner import _parse_cfg_args as parse_runner_flags
from sae_lens.training._interruption import InterruptedException

__all__ = [
    "LEANED_ON",
    "READ_IN",
    "InterruptedException",
    "own_hook_name",
    "parse_runner_flags",
    "validate_seqpos",
]

READ_IN = {"sae-lens": "6.54.12", "transformer-lens": "3.9.0"}

LEANED_ON: dict[type[Any], tuple[str, ...]] = {
    SAE: ("_setup_activation_normalization",),  # input steps as methods: sae/normalization.py
    SAETrainer: ("_train_step", "_is_logging_step"),  # the faster step: training/trainer.py
    LanguageModelSAETrainingRunner: ("_compile_llm_if_needed",),  # a look at the hook before it
    SAETransformerBridge: ("_resolve_hook_name",),  # own_hook_name
}
"""Methods that we override or call, by the class that has them."""


def own_hook_name(model: Any, hook_name: str) -> str:
    """What the model itself calls a hook.

    On a bridge TransformerLens' names are aliases: without compatibility mode its hooks and caches
    silently miss them. And where an SAE was attached and removed, SAELens leaves a hook point that
    has lost its name, so that hooks miss it in either mode; it gets its name back here.
    """
    resolve = getattr(model, "_resolve_hook_name", None)
    if resolve is None:
        return hook_name
    own: str = resolve(hook_name)
    if own in model.hook_dict:
        model.hook_dict[own].name = own
    return own
