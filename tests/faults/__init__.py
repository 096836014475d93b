"""Kills real training commands, continues them, and compares every bit with a run that was left alone."""
