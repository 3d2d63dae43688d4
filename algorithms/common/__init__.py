"""What the algorithms share: the SB3 shell, the policy, actors and rollouts."""
