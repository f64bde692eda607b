"""How it flows: Kafka, the three delivery loops, and the consumers of the data plane. Imports `schemas`."""
