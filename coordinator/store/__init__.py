"""What survives: SQL tables, blobs and segments of update bodies."""
