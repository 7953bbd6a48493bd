"""A search: the driver that leads it, the proposals, the workers on Ray, and the recovery of broken trials."""
