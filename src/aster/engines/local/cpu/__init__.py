"""The CPU's fast path of decoding. README.md in this folder says why it is here."""
