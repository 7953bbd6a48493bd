"""The record of a search: its events, its folder, its state and its leaderboard. Start reading at events.py."""
