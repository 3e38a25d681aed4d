"""Automatic interpretation (autointerp) by activation rank, by a judge that is a language model."""

from hsae_lens.evaluation.autointerp.excerpts import latent_examples
from hsae_lens.evaluation.autointerp.judges import CachedJudge, EndpointJudge, Judge, local_judge
from hsae_lens.evaluation.autointerp.scoring import score_latents

__all__ = [
    "CachedJudge",
    "EndpointJudge",
    "Judge",
    "latent_examples",
    "local_judge",
    "score_latents",
]
