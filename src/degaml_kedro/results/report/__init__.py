"""The report of a comparison: HTML and Markdown from one document."""
