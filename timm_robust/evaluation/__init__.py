"""Evaluation of a model on images: attacks by name, AutoAttack, and the record that `evaluate --json` writes."""
