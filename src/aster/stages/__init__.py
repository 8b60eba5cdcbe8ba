"""The pipeline: synthesize, curate, sft, rl, evaluate, report. Each stage is thin: ``run(recipe, folder)``."""
