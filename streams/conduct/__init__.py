"""The conductor: what asks for a job (triggers), when it gets one, and what it waits for until then."""
