"""How fast the paper's schemes and the library's are: see README.md."""
