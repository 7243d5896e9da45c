"""The policy: which strategy to try next on a task, learned from rollouts by ReST^EM."""
