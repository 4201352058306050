"""One training run: the loop, what it is made of, and how it resumes."""
