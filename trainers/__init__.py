"""How it learns: data sets from shards, fine-tuning, and the gate that judges what came of it."""
