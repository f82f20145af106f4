"""Losses between layers of two models."""
