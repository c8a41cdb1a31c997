"""Finished experiments put side by side: differences paired by seed, curves over budget and time, tables and pictures."""
