"""What has happened in a search: its events, its folder, how it stands."""
