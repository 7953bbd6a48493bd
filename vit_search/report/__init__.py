"""The report of a search: figures and texts, as an HTML page and as Markdown."""
