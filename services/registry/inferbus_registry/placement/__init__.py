"""Desired state: which versions each pool holds, and how a rollout goes on."""
