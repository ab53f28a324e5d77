"""Formats of datasets, and synthetic scenes with exact ground truth."""
