"""The lab's tiny base model: its tokenizer and its training. See docs/lab.md."""
