"""Arrays in, arrays out: crop, resample, normalise, components. No paths, no records."""
