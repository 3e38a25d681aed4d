"""Circuits at every budget: attribution, faithfulness, edges, and adapters for other tools."""

from hsae_lens.circuits.ablation import Ablator, Nodes, complement
from hsae_lens.circuits.adapters import as_dictionary, as_featurizer
from hsae_lens.circuits.attribution import Attribution, SiteAttribution, attribute_budgets
from hsae_lens.circuits.curve import circuit_curve
from hsae_lens.circuits.edges import latent_edges
from hsae_lens.circuits.interventions import ablate, keep, steer
from hsae_lens.circuits.metrics import areas, nesting
from hsae_lens.circuits.patching import patch_nodes
from hsae_lens.circuits.plots import circuit_figure, curves_figure
from hsae_lens.circuits.prompts import Prompts
from hsae_lens.circuits.result import shown_nodes, token_texts
from hsae_lens.sae.controls import neuron_basis

__all__ = [
    "Ablator",
    "Attribution",
    "Nodes",
    "Prompts",
    "SiteAttribution",
    "ablate",
    "areas",
    "as_dictionary",
    "as_featurizer",
    "attribute_budgets",
    "circuit_curve",
    "circuit_figure",
    "complement",
    "curves_figure",
    "keep",
    "latent_edges",
    "nesting",
    "neuron_basis",
    "patch_nodes",
    "shown_nodes",
    "steer",
    "token_texts",
]
