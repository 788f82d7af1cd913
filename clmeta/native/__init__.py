"""A rule's formula becomes a small C program."""
