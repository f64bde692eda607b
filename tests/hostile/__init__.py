"""What strangers may send, and what must happen then."""
