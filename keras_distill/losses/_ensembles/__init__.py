"""Losses that distil the members of an ensemble into one student, and losses for evidential heads."""
