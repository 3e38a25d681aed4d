"""Outlier tokens, which training leaves out: the rule that finds them, and how many there were."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from sae_lens import SAE

from hsae_lens._util.delayed_scalar import delay_on
from hsae_lens.models.token_mask import longest_activation

logger = logging.getLogger(__name__)


class Outliers:
    """Leaves tokens that are longer than an SAE's ``metadata.max_norm`` out of its training.

    Everything that judges the SAE reads the same limit. It is in the units in which the SAE reads
    activations: where SAELens scales them for a training, folding the scale changes it too.
    """

    def __init__(self) -> None:
        self.n_tokens = 0
        self._n_left_out: torch.Tensor | int = 0  # where the SAE is: asking would wait for a GPU

    def find_limit(self, sae: SAE[Any], x: torch.Tensor) -> None:
        """Sets the limit from the first batch ``[..., d_in]``, if the SAE has none, and says it.

        Raises:
            ValueError: if the limit that it has would leave out more than half of the batch.
        """
        if not _applies(sae):
            return
        norms = x.detach().norm(dim=-1).to(torch.promote_types(x.dtype, torch.float32))
        given = sae.cfg.metadata.max_norm
        if not given:
            limit = sae.cfg.outlier_factor * norms.median().item()
            if not 0 < limit < math.inf:  # half of the tokens are zeros, or of no length at all
                return
            sae.cfg.metadata.max_norm = float(f"{limit:.4g}")
        n = int((norms > longest_activation(sae)).sum())
        if given and 2 * n > norms.numel():
            raise ValueError(
                f"metadata.max_norm={given:g} would leave out {n / norms.numel():.0%} of the first "
                "batch. Was it found for other activations, or in other units? Set it to None."
            )
        if n:
            rule = "" if given else f", {sae.cfg.outlier_factor:g} times the median,"
            logger.warning(
                f"{n} of the first {norms.numel()} activations are longer than "
                f"{longest_activation(sae):g}{rule} and are outliers: left out of training and "
                "judging. outlier_factor=None keeps them in training."
            )

    def keep(self, sae: SAE[Any], x: torch.Tensor) -> torch.Tensor | None:
        """Which tokens ``[...]`` of a batch ``[..., d_in]`` count; None where it is known that all.

        On a GPU that is not known without waiting for it.
        """
        self.n_tokens += x.shape[:-1].numel()
        if not (_applies(sae) and sae.cfg.metadata.max_norm):
            return None
        # Not "at most": a NaN is no outlier, and is to be found, not left out.
        keep = ~(x.detach().norm(dim=-1) > longest_activation(sae))
        if delay_on(x.device) == 0 and keep.all():
            return None
        self._n_left_out = self._n_left_out + (~keep).sum()
        return keep

    def share(self) -> float:
        """The share of the tokens so far that were left out; 0 before the first."""
        return int(self._n_left_out) / max(self.n_tokens, 1)


def _applies(sae: SAE[Any]) -> bool:
    """Whether outliers are to be left out. Whitened activations all have about one length."""
    whitened = sae.cfg.normalize_activations == "covariance_whitening"
    return sae.cfg.outlier_factor is not None and not whitened


def weights_of_kept(keep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights ``[...]`` with which a mean over all tokens is the mean over those that count.

    Where none does, it is 0.
    """
    kept = keep.to(torch.promote_types(dtype, torch.float32))
    return kept / kept.mean().clamp(min=1 / max(keep.numel(), 1))
