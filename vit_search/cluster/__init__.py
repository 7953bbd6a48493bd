"""Searches on a shared Ray cluster: the cluster file, the jobs, and the services on the head."""
