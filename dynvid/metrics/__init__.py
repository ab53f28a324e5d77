"""How good, and how much alike, two runs are."""
