"""Before training: a check of every image, and shards."""
