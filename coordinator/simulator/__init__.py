"""The coordinator in virtual time: the live engine, strategies and device session, with made-up devices around them."""
