"""Videos in and out: reading, writing, drawing and reports."""
