"""Benchmarks: programs that measure, and the results that they stored."""
