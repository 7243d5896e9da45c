"""The stages as Kedro pipelines: thin declarations over the domain folders."""
