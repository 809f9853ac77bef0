"""Numbers of the authors' implementation; `data/index.json` describes every file and its tolerance."""
