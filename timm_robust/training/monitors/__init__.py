"""Monitors: callbacks that watch every run. The loop knows their events only."""
