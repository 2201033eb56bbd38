"""From an image to a segmentation: windows, ensembles, mirroring. Loads a trained model once, predicts many times."""
