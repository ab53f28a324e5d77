"""Tables 6 and 9-11 of DynCNN, recomputed from their own array sizes."""
