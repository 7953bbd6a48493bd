"""The file of a cluster: read, checked, and written anew for other kinds of machines."""
