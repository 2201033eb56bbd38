"""File formats: the only part of autoseg that knows how images, labels and preprocessed cases lie on disk."""
