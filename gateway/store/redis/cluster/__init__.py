"""A Redis Cluster: its client, its nodes, and the reads that are kept of them."""
