"""Typed settings, each reached by its dotted name. What the settings are, `config` says."""
