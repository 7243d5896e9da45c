"""Runs, comparisons and models in MLflow."""
