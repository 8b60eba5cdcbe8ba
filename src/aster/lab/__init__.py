"""The embedded default: problem families, scripted experts, a tiny base model. See docs/lab.md."""
