"""The sandbox over HTTP: ``aster sandbox serve``. Needs the extra ``serve``. See docs/sandbox.md.

``registry`` holds the sessions and knows nothing of HTTP; ``app`` turns requests into calls of it; ``door`` stands before the
app (tokens, body sizes, counts); ``server`` listens, and ends in order. Requests in others' forms are ``fusion``'s and
``notebook``'s: they call ``inside``, which runs in the session.
"""
