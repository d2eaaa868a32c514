"""How a simulated fleet learns together: one method a file."""
