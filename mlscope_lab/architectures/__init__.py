"""Networks that a manifest can name when its file holds weights only; each is a ``build(**parameters)``."""
