"""HAT: TRADES, with helper images beyond the ball labelled by a standard network (Rade and Moosavi-Dezfooli, 2022).

Torch-free here; the card is README.md.
"""
