"""Read by setuptools, so a plain assignment."""

__version__ = "0.1.0"
