"""The process and the machine: Ray sessions, signals, the user account, and what this machine can do."""
