"""Families of SAEs on one set of activations: is one SAE as good as every specialist?"""

from hsae_lens.comparison.config import CompareConfig
from hsae_lens.comparison.families import FAMILIES, Family, Shape
from hsae_lens.comparison.page import in_short
from hsae_lens.comparison.run import run_compare

__all__ = ["FAMILIES", "CompareConfig", "Family", "Shape", "in_short", "run_compare"]
