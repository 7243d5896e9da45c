"""The page over :mod:`degaml_kedro.session`: paste examples, adapt, look, ask, take the adapter along."""
