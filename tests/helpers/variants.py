"""The kinds of SAE that everything which takes an SAE must cope with.

Every two settings of normalisation, dtype, rescaling by decoder norms, heads and b_dec stand
together in at least one variant. A test of something that takes an SAE is parametrised by the
names::

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_it(variant: str) -> None:
        sae = inference_variant(variant)
        x = activations_for(sae, 3, 5)
"""

from __future__ import annotations

from typing import Any

import torch

from helpers import training_sae
from hsae_lens import HierarchicalTopKSAE, HierarchicalTopKTrainingSAE

LAYER_NORM = {"normalize_activations": "layer_norm"}
CONSTANT_NORM = {"normalize_activations": "constant_norm_rescale"}
FLOAT64, BFLOAT16 = {"dtype": "float64"}, {"dtype": "bfloat16"}
NOT_RESCALED = {"rescale_acts_by_decoder_norm": False}
HEADS = {"reshape_activations": "hook_z"}
B_DEC_OUT_ONLY = {"apply_b_dec_to_input": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64, b_dec out only": FLOAT64 | B_DEC_OUT_ONLY,
    "bfloat16, not rescaled, heads": BFLOAT16 | NOT_RESCALED | HEADS,
    "layer norm, not rescaled": LAYER_NORM | NOT_RESCALED,
    "layer norm, float64, heads": LAYER_NORM | FLOAT64 | HEADS,
    "layer norm, bfloat16, not rescaled, b_dec out only": (
        LAYER_NORM | BFLOAT16 | NOT_RESCALED | B_DEC_OUT_ONLY
    ),
    "constant norm, heads, b_dec out only": CONSTANT_NORM | HEADS | B_DEC_OUT_ONLY,
    "constant norm, float64, not rescaled": CONSTANT_NORM | FLOAT64 | NOT_RESCALED,
    "constant norm, bfloat16": CONSTANT_NORM | BFLOAT16,
}
"""By name, the settings that both configs take; what is not named is as in SAELens."""


def training_variant(variant: str, **overrides: Any) -> HierarchicalTopKTrainingSAE:
    """A small training SAE of that kind; ``overrides`` win, and may name other fields."""
    return training_sae(**(VARIANTS[variant] | overrides))


def inference_variant(
    variant: str, hook_name: str | None = None, **overrides: Any
) -> HierarchicalTopKSAE:
    """A small inference SAE of that kind, with the weights of the training one.

    Its decoder norms are not folded to 1, so that rescaling by them shows.
    """
    trained = training_variant(variant, **overrides)
    cfg = trained.cfg.get_inference_sae_cfg_dict()
    cfg["rescale_acts_by_decoder_norm"] = trained.cfg.rescale_acts_by_decoder_norm
    sae = HierarchicalTopKSAE.from_dict(cfg)
    sae.load_state_dict(trained.state_dict())
    sae.cfg.metadata.hook_name = hook_name
    return sae


def activations_for(sae: Any, *batch: int, seed: int = 1) -> torch.Tensor:
    """Activations ``[*batch, d_in]`` in the SAE's dtype; ``[*batch, 4, d_in / 4]`` for heads."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, sae.cfg.d_in, generator=generator).to(sae.dtype)
    return x.unflatten(-1, (4, -1)) if sae.hook_z_reshaping_mode else x


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    """As ``torch.testing.assert_close``, for sums in another order: bfloat16 rounds each one."""
    close = {"atol": 0.03, "rtol": 0.03} if want.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, want, **close)
