"""Operations with an implementation for every device; XLA's is the reference of each."""
