"""DynCNN's schemes and the transformation with refresh on real frames with real ground truth."""
