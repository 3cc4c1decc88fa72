"""Open WebUI over one group's memory: a filter function for it, and a script that tries both as two people would."""
