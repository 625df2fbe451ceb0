"""The parts of ``benchmarks/architectures.py``: every architecture of the installed transformers, tiny and random."""
