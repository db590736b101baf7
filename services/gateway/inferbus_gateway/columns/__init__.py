"""Parquet, read and written in a process of its own: its library never runs in the gateway's."""
