"""Searches on a shared Ray cluster: the cluster's file, the jobs, and the services on its head."""
