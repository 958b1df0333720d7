"""Kills, full disks, disk errors and short transfers while files are written: `python -m tests.faults` (docs/reliability/writes.md)."""
