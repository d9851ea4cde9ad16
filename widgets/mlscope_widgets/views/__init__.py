"""Functions from datasets to figures, one module a subject."""
