"""Losses between the logits of one teacher and those of one student."""
