"""The word lists of the suite."""
