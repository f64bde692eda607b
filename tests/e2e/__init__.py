"""The whole running system: brought up once, the loop played once, then looked at, broken and ended, in file order."""
