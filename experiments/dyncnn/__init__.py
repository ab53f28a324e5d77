"""DynCNN: what the paper reports beside what follows from it and what we measure."""
