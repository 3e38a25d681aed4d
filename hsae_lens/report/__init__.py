"""One page that a researcher trusts and a decision maker understands."""

from hsae_lens.report.page import write_report

__all__ = ["write_report"]
