"""Networks and what belongs to them: detection heads, their decoding, non-maximum suppression."""
