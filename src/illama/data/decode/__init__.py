"""From a file's bytes to the pixels that a use of them needs."""
