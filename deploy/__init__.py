"""How it is run: settings, the command line, the local parts, the demo, and what a cluster needs."""
