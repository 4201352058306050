"""GradAlign: gradients inside the ball kept aligned (Andriushchenko and Flammarion, 2020).

Torch-free here; the card is README.md.
"""
