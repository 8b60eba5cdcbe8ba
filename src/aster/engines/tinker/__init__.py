"""An engine on a server with the Tinker API, which samples and trains the policy."""
