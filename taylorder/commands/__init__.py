"""The commands, one module each: they parse, call and render; :mod:`taylorder.cli` puts them together."""
