"""Clients that others wrote, each in a process of its own, against the running stack."""
