"""How pasted text is read: the records of each layout, each by itself."""
