"""The `tuneloop` command: noun and verb, data on stdout, progress on stderr, errors that say what to do next."""
