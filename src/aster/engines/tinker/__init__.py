"""A policy on a Tinker API server: sampled and trained there."""
