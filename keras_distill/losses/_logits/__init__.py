"""Losses between two sets of logits of one model each."""
