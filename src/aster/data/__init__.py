"""Problems, sets of trajectories, the file layouts of other projects, and curation. Nothing here imports torch."""
