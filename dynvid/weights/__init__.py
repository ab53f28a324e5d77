"""Readers of published weights; the only place besides `video` and the CLI that opens files."""
