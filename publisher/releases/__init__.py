"""Releases as operators make and move them: their files, the wiring of their flags, and what is said of them. Pure."""
