"""What a hierarchical training SAE takes over from an SAE that was trained for one budget."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainingSAE

from hsae_lens.sae.normalization import normalization_of
from hsae_lens.sae.saved_files import is_finite

logger = logging.getLogger(__name__)

BATCHTOPK = ("batchtopk", "matryoshka_batchtopk")  # SAELens' training SAEs; saved they are jumprelu

CONVERTIBLE = ("topk", *BATCHTOPK, "jumprelu", "hierarchical_topk")

WHY_NOT = {
    "abstopk": "its latents are signed, and a code in order of activation has no place for "
    "negative ones",
    "gated": "its gates choose latents by other numbers than their activations",
    "transcoder": "it predicts another activation than it reads",
    "matching_pursuit": "it finds a token's latents one after another, not by one encoder",
    "temporal": "a token's latents depend on the tokens before it",
}
"""By what the architecture's name contains; others say nothing about which latents to keep."""

WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")

SHARED_FIELDS = ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "reshape_activations")

FORGOTTEN = ("frontier", "definitions", "notes", "training_architecture_details", "training_time",
             "training_tokens", "training_settings", "dead_latents", "outlier_share")  # fmt: skip
"""Facts in the metadata that are no longer true of an SAE that is trained on."""


@dataclass(frozen=True)
class TakenOver:
    """A source's weights and settings, so arranged that latents are ordered by one number.

    weights: ``W_enc`` [d_in, d_sae], ``b_enc``, ``W_dec`` [d_sae, d_in], ``b_dec``; copies.
    settings: of the training config.  k: how many latents its tokens use, if it says so; of
    BatchTopK on average, rounded up.  threshold: the activation, as latents are ordered by it,
    that the source's latents exceed to count; None of a TopK.
    """

    weights: dict[str, torch.Tensor]
    settings: dict[str, Any]
    metadata: SAEMetadata
    k: int | None
    threshold: float | None


@torch.no_grad()
def take_over(sae: SAE[Any]) -> TakenOver:
    """Reads a stock (or hierarchical) SAE; changes nothing in it.

    What it reconstructs from a token's latents stays, and so does which latents a token uses: of a
    TopK the first k of the order, of a JumpReLU those whose place in the order is above one
    threshold. That needs one number for all latents: where a JumpReLU has a threshold θᵢ for each,
    activations are counted in units of θᵢ / θ̄ (θ̄ their geometric mean), encoder columns divided by
    it and decoder rows multiplied. A latent whose threshold is not positive is on wherever it is;
    here it gets θ̄ for one, and a warning says so.

    Raises:
        ValueError: for another architecture (its reason is said), weights that are NaN or infinite,
            decoder rows of norm zero, or a threshold that is nowhere positive.
    """
    check_source(sae)
    architecture = sae.cfg.architecture()
    weights = {name: getattr(sae, name).detach().clone() for name in WEIGHTS}
    settings = {name: getattr(sae.cfg, name) for name in SHARED_FIELDS}
    settings["normalize_activations"] = _normalization(sae)
    threshold = None
    if architecture == "jumprelu":
        rescales, threshold = _by_one_threshold(weights, sae.threshold.detach().clone())
    else:
        # Norms of one decide nothing yet, and are not to begin it while they drift.
        rescales = sae.cfg.rescale_acts_by_decoder_norm or _are_one(weights["W_dec"])
        if architecture in BATCHTOPK:
            threshold = float(sae.topk_threshold)
    settings["rescale_acts_by_decoder_norm"] = rescales
    metadata = copy.deepcopy(sae.cfg.metadata)
    k = own_k(sae)
    for name in FORGOTTEN:
        metadata.__dict__.pop(name, None)
    return TakenOver(weights, settings, metadata, k, threshold)


def check_source(sae: SAE[Any]) -> None:
    """Raises ValueError, as :func:`take_over`, for an SAE whose weights cannot be taken over."""
    architecture = sae.cfg.architecture()
    if architecture not in CONVERTIBLE:
        silent = "it has neither a number of latents nor thresholds of its own"
        why = next((why for part, why in WHY_NOT.items() if part in architecture), silent)
        raise ValueError(
            f"A {architecture!r} SAE cannot be converted: {why}. Those that can: "
            f"{', '.join(CONVERTIBLE)}."
        )
    if bad := [name for name in WEIGHTS if not is_finite(getattr(sae, name).detach())]:
        raise ValueError(f"{bad[0]} holds NaN or infinite numbers: this SAE cannot be trained on.")
    if zeros := int((~sae.W_dec.any(dim=-1)).sum()):
        raise ValueError(
            f"{zeros} of {sae.cfg.d_sae} decoder rows are zero: a latent without a direction "
            "reconstructs nothing. Take the SAE before those were cleared, or remove them."
        )


def _are_one(W_dec: torch.Tensor) -> bool:
    return bool(((W_dec.norm(dim=-1) - 1).abs() < 1e-5).all())


def _normalization(sae: SAE[Any]) -> str:
    """Scalings of the whole input are in an inference SAE's weights, whatever its config says."""
    folded = normalization_of(sae).folded_at_the_end and not isinstance(sae, TrainingSAE)
    return "none" if folded else str(sae.cfg.normalize_activations)


def _by_one_threshold(
    weights: dict[str, torch.Tensor], thresholds: torch.Tensor
) -> tuple[bool, float]:
    """Folds decoder norms, then thresholds ``[d_sae]``, into weights; the one that is left.

    Also whether latents may be ordered by activation times decoder norm: not where the norms now
    hold thresholds.
    """
    norms = weights["W_dec"].norm(dim=-1)
    _scale(weights, norms)
    thresholds = (thresholds * norms).double()
    positive = thresholds[thresholds > 0]
    if not len(positive):
        raise ValueError(
            "No latent has a threshold above 0: this SAE is on wherever it is positive (a "
            "BatchTopK whose threshold was never set?), and nothing says how many latents it means."
        )
    middle = math.exp(float(positive.log().mean()))
    if without := len(thresholds) - len(positive):
        logger.warning(
            "%d of %d latents have no threshold above 0; their activations below %.3g, a typical "
            "one, do not count here.", without, len(thresholds), middle,
        )  # fmt: skip
    elif torch.allclose(thresholds, thresholds[:1], rtol=1e-4):
        return True, float(thresholds[0])
    thresholds = torch.where(thresholds > 0, thresholds, middle)
    _scale(weights, (middle / thresholds).to(norms))
    return False, middle


def _scale(weights: dict[str, torch.Tensor], factors: torch.Tensor) -> None:
    """Activations ``factors`` ``[d_sae]`` times as large, decoder rows as much shorter."""
    weights["W_enc"] *= factors
    weights["b_enc"] *= factors
    weights["W_dec"] /= factors[:, None]


def own_k(sae: SAE[Any]) -> int | None:
    """How many latents a source means a token to use, where it says so; a mean is rounded up."""
    details = sae.cfg.metadata.training_architecture_details or {}
    k = getattr(sae.cfg, "k", None) or details.get("k")
    return math.ceil(k) if isinstance(k, int | float) and 0 < k <= sae.cfg.d_sae else None


def wanted_k(k: int | None, taken: TakenOver) -> int:
    """The largest budget of the converted SAE: as asked, else the source's own.

    Raises:
        ValueError: if neither says one.
    """
    if k is not None:
        return k
    if taken.k is None:
        raise ValueError(
            "The source does not say how many latents a token uses, so give the largest budget: k "
            "(--k). About what it uses on average on your text is a good choice."
        )
    return taken.k
