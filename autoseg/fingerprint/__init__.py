"""What a dataset is like, measured in one pass over its files."""

from __future__ import annotations

from autoseg.fingerprint.measure import CaseStats, case_stats, content_hash, merge

__all__ = ["CaseStats", "case_stats", "content_hash", "merge"]
