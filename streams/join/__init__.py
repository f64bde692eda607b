"""The parts of `join-feedback`: its rules, what its tables hold, and the clock by which rows leave them."""
