"""Results as pages: self-contained HTML, computed from nothing but tables."""

from hsae_lens.report.circuits_page import write_circuits
from hsae_lens.report.latents_page import write_latents
from hsae_lens.report.page import write_report

__all__ = ["write_circuits", "write_latents", "write_report"]
