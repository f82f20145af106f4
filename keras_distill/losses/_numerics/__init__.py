"""Numerical helpers shared by the losses; nothing here is a loss."""
