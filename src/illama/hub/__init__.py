"""How timm knows the names of this project's networks."""
