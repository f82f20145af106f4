"""Losses for detectors: boxes, distributions of box edges, heatmaps of centres."""
