"""A pilot: short trainings that settle the settings of a long one, and end with a recipe."""

from hsae_lens.pilot.config import PilotConfig
from hsae_lens.pilot.look import Look, look_at
from hsae_lens.pilot.run import run_pilot

__all__ = ["Look", "PilotConfig", "look_at", "run_pilot"]
