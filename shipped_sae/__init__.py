"""How the SAEs that ship in the package are made, from nothing: ``make shipped_sae``."""
