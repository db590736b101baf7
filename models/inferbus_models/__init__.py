"""Recipes that build the sample models from real data and shipped weights."""
