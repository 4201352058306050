"""Verbs of the package, a file each. They load torch and timm when called, and are not re-exported here: `train` would
name both a function and a module."""
