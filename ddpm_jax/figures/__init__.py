"""Pictures, animations and curves of a run."""
