"""What other programs left behind, brought into autoseg's own forms: models of nnU-Net, datasets of every layout."""
