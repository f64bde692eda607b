"""What is said: events, topics, identities, codec, and all that is derived from them. Imports nothing of ours."""
