"""What a network is run for: frames into it, results out of it."""
