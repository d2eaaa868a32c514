"""What the coordinator keeps: members, rounds, generalists, payloads."""
