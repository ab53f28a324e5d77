"""IFMDC on real video: what it costs, what it keeps, and over a wire."""
