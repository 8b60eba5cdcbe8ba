"""The sandbox over HTTP: ``aster sandbox serve``. Needs the extra ``serve``. See docs/sandbox.md.

``registry`` has the sessions, without HTTP. ``app`` has the routes, which call it. ``middleware`` runs before the routes:
tokens, body sizes, counters. ``server`` listens and shuts down. ``fusion`` and ``notebook`` serve SandboxFusion's requests;
they call ``inside``, which runs in the session.
"""
