"""Strategies: ways to refine an adapter for a task, one family a file, and the registry that users extend."""
