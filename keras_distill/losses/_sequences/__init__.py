"""Losses on sequences: CTC and linear-chain CRFs."""
