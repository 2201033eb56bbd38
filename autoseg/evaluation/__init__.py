"""Scores of one segmentation against its reference, and their summary over cases."""
