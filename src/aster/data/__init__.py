"""Problems, sets of trajectories, the layouts of other projects, and what curation keeps of them. No torch here."""
