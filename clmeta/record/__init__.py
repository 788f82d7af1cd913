"""Run folders: what is written while a run goes on, and by what."""
