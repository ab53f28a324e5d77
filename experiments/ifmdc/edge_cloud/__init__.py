"""A network cut in two: an edge process sends coded features to a cloud process, which detects."""
