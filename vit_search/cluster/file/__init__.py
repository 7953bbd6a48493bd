"""The cluster file (cluster.yaml): reads it, checks it, and writes it for other kinds of machines."""
