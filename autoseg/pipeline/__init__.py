"""Use cases, one file per command: the only place that joins rooms."""
