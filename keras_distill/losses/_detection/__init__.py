"""Losses of detectors: boxes, edges as distributions, heatmaps of centres."""
