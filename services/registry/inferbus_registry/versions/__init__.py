"""Immutable versions of models."""
