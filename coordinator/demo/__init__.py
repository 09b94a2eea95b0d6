"""``shoal demo``: a coordinator, its pages and a small fleet of real agents on one machine."""
