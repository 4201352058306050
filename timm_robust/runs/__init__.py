"""The folder of a run: file names, manifest, checkpoints, history."""
