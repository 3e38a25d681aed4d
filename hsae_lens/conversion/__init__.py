"""Every budget from an SAE that was trained for one: taken over exactly, then fine-tuned."""

from hsae_lens.conversion.config import ConvertConfig
from hsae_lens.conversion.moved import latents_moved, movement
from hsae_lens.conversion.result import Conversion
from hsae_lens.conversion.run import convert_sae

__all__ = ["Conversion", "ConvertConfig", "convert_sae", "latents_moved", "movement"]
