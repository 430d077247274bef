"""Benchmarks: the same cases for ``pytest benchmarks/ --benchmark-only`` and for the report."""
