"""Regression losses, with and without a predicted variance."""
