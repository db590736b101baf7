"""Engines: one child process per resident version, and the host that minds it."""
