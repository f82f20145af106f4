"""Losses on sequences: alignments of CTC, tags of a linear chain, tokens."""
