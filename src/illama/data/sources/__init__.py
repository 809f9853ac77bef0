"""Where images and labels come from: what lies at a path, and how each kind of it is read."""
