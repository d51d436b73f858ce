"""File formats: each reads a file as records, one for each row to be."""
