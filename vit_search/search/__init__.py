"""One search: the driver, the proposals, the workers on Ray, and the recovery of broken trials. Start reading at driver.py."""
