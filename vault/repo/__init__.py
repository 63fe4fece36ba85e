"""Format plus store: verified objects, packs, indexes, journals, datasets and runs."""
