"""The model validation service: compares a candidate with production and says pass or refuse, with numbers."""
