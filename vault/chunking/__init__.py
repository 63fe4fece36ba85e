"""Where a large file is cut into chunks, and how a file is stored. Pure."""
