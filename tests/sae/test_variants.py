"""The table of SAE variants keeps its promise."""

from __future__ import annotations

from itertools import combinations

from helpers.variants import VARIANTS, inference_variant

SETTINGS = {
    "normalize_activations": ("none", "layer_norm", "constant_norm_rescale"),
    "dtype": ("float32", "float64", "bfloat16"),
    "rescale_acts_by_decoder_norm": (True, False),
    "reshape_activations": ("none", "hook_z"),
    "apply_b_dec_to_input": (True, False),
}


def test_every_two_settings_stand_together_in_a_variant() -> None:
    there = [inference_variant(variant).cfg.to_dict() for variant in VARIANTS]
    for one, other in combinations(SETTINGS, 2):
        pairs = {(cfg[one], cfg[other]) for cfg in there}
        assert pairs == {(a, b) for a in SETTINGS[one] for b in SETTINGS[other]}, (one, other)
