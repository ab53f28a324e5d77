"""IFMDC against HEVC and a lightweight intra codec: person AP50 against bits per pixel."""
