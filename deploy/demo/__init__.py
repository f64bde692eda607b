"""The demo: a support desk played against the running system, the whole loop once round."""
