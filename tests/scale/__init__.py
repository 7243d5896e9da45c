"""Tests of what runs on several machines or processes: `make test-scale`."""
