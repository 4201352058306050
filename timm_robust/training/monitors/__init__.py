"""What watches a run, a file each; the loop knows only events."""
