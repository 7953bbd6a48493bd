"""The process and the machine: Ray sessions, signals, the user account, and the capabilities of this machine."""
