"""Single latents: what they fire on, dashboards, and texts to follow latent by latent."""

from hsae_lens.evaluation.latents.dashboards import latent_dashboards
from hsae_lens.evaluation.latents.describe import describe_latents, logit_effects
from hsae_lens.evaluation.latents.walkthrough import token_walkthroughs

__all__ = ["describe_latents", "latent_dashboards", "logit_effects", "token_walkthroughs"]
