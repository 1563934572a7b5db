"""A Redis Cluster: its client, the connections to its nodes, and kept reads."""
