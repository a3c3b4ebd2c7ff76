"""Ways for ranks to exchange, one file each; ``catalogue`` names them, ``choose`` makes them."""
