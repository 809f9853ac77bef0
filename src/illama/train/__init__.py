"""Training: schedules, optimizer, losses, and the one loop that runs every recipe."""
