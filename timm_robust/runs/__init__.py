"""What lies in a run's folder: manifest, checkpoints, history."""
