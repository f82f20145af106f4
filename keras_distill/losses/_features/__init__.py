"""Losses between intermediate layers of two models."""
