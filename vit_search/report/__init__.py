"""The report of a search: figures and texts, as one page of HTML and one of Markdown."""
