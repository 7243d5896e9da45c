"""The configuration: its types, how it is read, and the table of methods."""
