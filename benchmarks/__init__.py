"""Measurements of speed, memory and quality: each script states its claim, command, machine and date."""
