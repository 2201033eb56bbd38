"""Command line: flags to settings to a pipeline. No decisions are made here."""
