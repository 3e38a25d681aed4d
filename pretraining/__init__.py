"""How the SAEs in ``hsae_lens/pretrained/`` are made, from nothing: ``make pretrained``."""
