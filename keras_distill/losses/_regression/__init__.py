"""Losses between outputs that are numbers, with and without a variance."""
