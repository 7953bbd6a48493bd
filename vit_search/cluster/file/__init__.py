"""The file of a cluster: read, checked, and written for other kinds of machines."""
