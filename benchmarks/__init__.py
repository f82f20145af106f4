"""Speed, memory and quality, measured: each script states its claim, command, machine and date. Never gates CI."""
