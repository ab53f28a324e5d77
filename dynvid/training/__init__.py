"""Training: a loop that can be killed and goes on as if it had not been (extra `train`)."""
