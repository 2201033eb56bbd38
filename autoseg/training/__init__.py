"""Training: patches in, trained weights out. ``fit`` is the loop, the only one; everything that varies is a value."""
