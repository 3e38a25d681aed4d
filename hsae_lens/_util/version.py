"""The package's version. setuptools reads it too, so it is a plain assignment."""

__version__ = "0.1.0"
