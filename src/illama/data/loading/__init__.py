"""Which images come when, and how they get to the device."""
