"""The process and the machine around a search: a Ray to work on, signals, the account, what this machine can do."""
