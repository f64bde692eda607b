"""Base models: taking one into the artifact store, and the small one that is shipped."""
