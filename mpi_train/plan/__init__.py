"""What training would cost on more ranks: measured on one and two of them, predicted for the rest."""
