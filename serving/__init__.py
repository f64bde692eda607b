"""How it answers: the generation engine, the routes to versions, and the OpenAI-compatible gateway."""
