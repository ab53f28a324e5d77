"""Videos in and out: reading, writing, drawing, reports and synthetic scenes."""
