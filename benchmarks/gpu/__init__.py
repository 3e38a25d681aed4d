"""``python -m benchmarks gpu``: everything that ten minutes on a card should do, in one command."""
