"""A model in this process: loaded, sampled and trained with torch."""
