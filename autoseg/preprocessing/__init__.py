"""From an image to what a network sees, and from logits back to the image's grid: forward and inverse together."""
